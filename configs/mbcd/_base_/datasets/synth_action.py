"""The synthetic actions: 56-pixel clips of 8 frames, 2 s of sound, 6 classes.

Made by tools/data/make_synth_action.py. Crop, flip and time are drawn jointly for
video and flow. The validation yields the target too, for curves only.
"""

data_root = "data/synth_action"
num_classes = 6
modalities = ["video", "audio", "flow"]

_sample = dict(type="SampleClip", clip_len=8, frame_interval=4)
_augment = [
    dict(type="RandomResizedCrop", area_range=(0.5, 1.0)),
    dict(type="Resize", scale=(56, 56), keep_ratio=False),
    dict(type="ClipFlip", flip_ratio=0.5),
]
_centre = [dict(type="CenterCrop", crop_size=56)]
_shape = [dict(type="FormatShape", input_format="NCTHW", collapse=True)]
_sound = [
    dict(type="LoadWaveform", sample_rate=16000, span="file"),
    dict(type="TileWaveform", length=32000),
    dict(type="LogSpectrogram", nperseg=256, noverlap=16),
]

train_pipelines = dict(
    video=[
        dict(type="OpenVideo"),
        _sample,
        dict(type="DecodeVideo"),
        *_augment,
        *_shape,
    ],
    audio=[
        *_sound,
        dict(type="SpectrogramNoise", amplitude=0.05),
        dict(type="FrequencyMask", width=9),
        dict(type="FormatAudio"),
    ],
    flow=[
        dict(type="OpenFlowPair"),
        _sample,
        dict(type="DecodeFlowPair"),
        *_augment,
        *_shape,
    ],
)
_still = dict(_sample, test_mode=True)
test_pipelines = dict(
    video=[
        dict(type="OpenVideo"),
        _still,
        dict(type="DecodeVideo"),
        *_centre,
        *_shape,
    ],
    audio=[*_sound, dict(type="FormatAudio")],
    flow=[
        dict(type="OpenFlowPair"),
        _still,
        dict(type="DecodeFlowPair"),
        *_centre,
        *_shape,
    ],
)

_dataset = dict(
    type="SynthActionDataset",
    data_root=data_root,
    target="sketch",
    modalities=modalities,
)
_loader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type="pseudo_collate"),
)
train_dataloader = dict(
    **_loader,
    drop_last=True,
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(_dataset, use="train", pipelines=train_pipelines),
)
val_dataloader = dict(
    **_loader,
    sampler=dict(type="ResumableSampler", shuffle=False),
    dataset=dict(
        _dataset,
        use="val",
        watch_target=True,
        eval_split="test",  # of the target, whose curves need no more clips
        pipelines=test_pipelines,
    ),
)
test_dataloader = dict(
    **_loader,
    sampler=dict(type="ResumableSampler", shuffle=False),
    dataset=dict(_dataset, use="test", eval_split="full", pipelines=test_pipelines),
)

# Parts of the above, not settings of their own.
del (
    _sample,
    _still,
    _augment,
    _centre,
    _shape,
    _sound,
    _dataset,
    _loader,
    train_pipelines,
    test_pipelines,
)
