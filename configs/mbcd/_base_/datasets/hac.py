"""Human-Animal-Cartoon with the published sampling.

The numbers of the papers come from it: a file counts as one frame less than it has, the
frame before each sampled one is decoded, and sound is cut at 24 frames per second
whatever the file says (MultiModalDataset). --sampling repaired: every frame, and the
sound of just these frames.
"""

_base_ = "./published_clips.py"

data_root = "data/HAC"
num_classes = 7
modalities = ["video", "audio", "flow"]

_sound = dict(type="LoadWaveform", sample_rate=16000, span="frames")
_train = dict(
    video=[
        dict(type="OpenVideo"),
        {{_base_.published.rgb}},
        dict(type="DecodeVideo"),
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
        dict(type="DecodeFlowPair"),
        {{_base_.published.augment}},
    ],
)
_test = dict(
    video=[
        dict(type="OpenVideo"),
        {{_base_.published.rgb_centre}},
        dict(type="DecodeVideo"),
        {{_base_.published.rgb_whole}},
    ],
    audio=[_sound, {{_base_.published.spectrogram}}, dict(type="FormatAudio")],
    flow=[
        dict(type="OpenFlowPair"),
        {{_base_.published.flow_centre}},
        dict(type="DecodeFlowPair"),
        {{_base_.published.flow_whole}},
    ],
)

_dataset = dict(
    type="HACDataset",
    data_root=data_root,
    target="cartoon",
    modalities=modalities,
    sampling="published",
    joint_augment=False,
)
train_dataloader = dict(dataset=dict(_dataset, pipelines=_train))
val_dataloader = dict(dataset=dict(_dataset, pipelines=_test))
test_dataloader = dict(dataset=dict(_dataset, pipelines=_test))

# Parts of the above, not settings of their own.
del _sound, _train, _test, _dataset
