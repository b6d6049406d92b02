"""The recognizer and its normalisation: RGB as on Kinetics, flow around 128."""

model = dict(
    type="MultiModalRecognizer",
    data_preprocessor=dict(
        type="MultiModalDataPreprocessor",
        preprocessors=dict(
            video=dict(
                type="ActionDataPreprocessor",
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                format_shape="NCTHW",
            ),
            audio=dict(type="ActionDataPreprocessor"),
            flow=dict(
                type="ActionDataPreprocessor",
                mean=[128.0, 128.0],
                std=[128.0, 128.0],
                format_shape="NCTHW",
            ),
        ),
    ),
)
