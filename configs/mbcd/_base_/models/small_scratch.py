"""Three small networks trained from scratch, so with an empty stem.

A frozen stem of random weights makes no sense; see the EPIC-Kitchens and HAC models
for the pretrained ones. Feature dropout is off for all methods: row 1's 0.5 is the
published setting of pretrained networks.
"""

_head = dict(type="MLPHead", hidden_channels=64)
_clip = dict(
    type="ResNet3d",
    depth=18,
    base_channels=8,
    num_stages=3,
    stage_blocks=(1, 1, 1),
    spatial_strides=(1, 2, 2),
    temporal_strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2,),
    inflate=(1, 1, 1),
    non_local=(0, 0, 0),
    conv1_kernel=(3, 5, 5),
    conv1_stride_t=1,
    pool1_stride_t=1,
    with_pool2=False,
    zero_init_residual=False,
)

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
                # Displacements are a few of the 16 pixels that 8 bits span.
                std=[32.0, 32.0],
                format_shape="NCTHW",
            ),
        ),
    ),
    encoders=dict(
        video=dict(type="ModalityEncoder", backbone=_clip),
        audio=dict(
            type="ModalityEncoder",
            backbone=dict(
                type="mmpretrain.ResNet",
                depth=18,
                in_channels=1,
                stem_channels=16,
                base_channels=16,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(2,),
                zero_init_residual=False,
            ),
        ),
        flow=dict(type="ModalityEncoder", backbone=dict(_clip, in_channels=2)),
    ),
    fused_head=_head,
    unimodal_head=_head,
)
