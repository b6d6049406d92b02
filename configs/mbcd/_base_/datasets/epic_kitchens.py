"""EPIC-Kitchens with the published sampling: D1 = P08, D2 = P01, D3 = P22.

Frames as images, or clips as one mp4 each; flow at half the rate; sound: the segment,
at most its first 10 s.
"""

_base_ = "./published_clips.py"

data_root = "data/EPIC-Kitchens"
num_classes = 8
modalities = ["video", "audio", "flow"]

_sound = dict(type="LoadWaveform", sample_rate=16000, span="segment", max_seconds=10)
_train = dict(
    video=[
        dict(type="OpenVideo"),
        {{_base_.published.rgb}},
        dict(type="DecodeFrames"),
        {{_base_.published.augment}},
    ],
    audio=[
        _sound,
        {{_base_.published.spectrogram}},
        {{_base_.published.disturbance}},
        dict(type="FormatAudio"),
    ],
    flow=[
        dict(type="OpenFlowPair"),
        {{_base_.published.flow}},
        dict(type="DecodeFlowFrames"),
        {{_base_.published.augment}},
    ],
)
_test = dict(
    video=[
        dict(type="OpenVideo"),
        {{_base_.published.rgb_centre}},
        dict(type="DecodeFrames"),
        {{_base_.published.rgb_whole}},
    ],
    audio=[_sound, {{_base_.published.spectrogram}}, dict(type="FormatAudio")],
    flow=[
        dict(type="OpenFlowPair"),
        {{_base_.published.flow_centre}},
        dict(type="DecodeFlowFrames"),
        {{_base_.published.flow_whole}},
    ],
)

_dataset = dict(
    type="EPICKitchensDataset",
    data_root=data_root,
    target="D3",
    modalities=modalities,
    sampling="published",
    joint_augment=False,
)
train_dataloader = dict(dataset=dict(_dataset, pipelines=_train))
val_dataloader = dict(dataset=dict(_dataset, pipelines=_test))
test_dataloader = dict(dataset=dict(_dataset, pipelines=_test))

# Parts of the above, not settings of their own.
del _sound, _train, _test, _dataset
