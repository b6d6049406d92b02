"""Human-Animal-Cartoon with the sampling of the published code.

RGB: 32 frames, every second; flow: 8, every fourth; sound: the time of the sampled
frames at 24 frames per second, tiled to 10 s. RGB and flow draw time, crop and flip
independently there; joint_augment=True draws them together.
"""

data_root = "data/HAC"
num_classes = 7
modalities = ["video", "audio", "flow"]

_augment = [
    dict(type="Resize", scale=(-1, 256)),
    dict(
        type="RandomResizedCrop",
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
    ),
    dict(type="Resize", scale=(224, 224), keep_ratio=False),
    dict(type="ClipFlip", flip_ratio=0.5),
]
_shape = [dict(type="FormatShape", input_format="NCTHW", collapse=True)]
_sound = [
    dict(type="LoadWaveform", sample_rate=16000, span="frames", span_fps=24),
    dict(type="TileWaveform", length=160000),
    dict(type="LogSpectrogram", nperseg=512, noverlap=353),
]
_rgb = dict(type="SampleClip", clip_len=32, frame_interval=2)
_flow = dict(type="SampleClip", clip_len=8, frame_interval=4)

train_pipelines = dict(
    video=[
        dict(type="OpenVideo"),
        _rgb,
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
        _flow,
        dict(type="DecodeFlowPair"),
        *_augment,
        *_shape,
    ],
)
test_pipelines = dict(
    video=[
        dict(type="OpenVideo"),
        dict(_rgb, test_mode=True),
        dict(type="DecodeVideo"),
        dict(type="Resize", scale=(-1, 256)),
        dict(type="CenterCrop", crop_size=224),
        *_shape,
    ],
    audio=[*_sound, dict(type="FormatAudio")],
    flow=[
        dict(type="OpenFlowPair"),
        dict(_flow, test_mode=True),
        dict(type="DecodeFlowPair"),
        dict(type="Resize", scale=(-1, 256)),
        dict(type="CenterCrop", crop_size=256),
        *_shape,
    ],
)

_dataset = dict(
    type="HACDataset",
    data_root=data_root,
    target="cartoon",
    modalities=modalities,
    joint_augment=False,
)
_loader = dict(
    batch_size=16,
    num_workers=8,
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
    dataset=dict(_dataset, use="val", pipelines=test_pipelines),
)
test_dataloader = dict(
    **_loader,
    sampler=dict(type="ResumableSampler", shuffle=False),
    dataset=dict(_dataset, use="test", eval_split="full", pipelines=test_pipelines),
)

# Parts of the above, not settings of their own.
del (
    _rgb,
    _flow,
    _augment,
    _shape,
    _sound,
    _dataset,
    _loader,
    train_pipelines,
    test_pipelines,
)
