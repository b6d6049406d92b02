"""The synthetic actions: 56-pixel clips of 8 frames, 2 s of sound, 6 classes.

Made by tools/data/make_synth_action.py. Crop, flip and time are drawn jointly for
video and flow. The validation yields the target too, for curves only.
"""

_base_ = "./loaders.py"

data_root = "data/synth_action"
num_classes = 6
modalities = ["video", "audio", "flow"]

_sample = dict(type="SampleClip", clip_len=8, frame_interval=4)
_still = dict(_sample, test_mode=True)
_shape = dict(type="FormatClip")
_augment = [
    dict(type="RandomResizedCrop", area_range=(0.5, 1.0)),
    dict(type="ResizeClip", scale=(56, 56), keep_ratio=False),
    dict(type="ClipFlip", flip_ratio=0.5),
    _shape,
]
_centre = [dict(type="CenterCrop", crop_size=56), _shape]
_sound = [
    dict(type="LoadWaveform", sample_rate=16000, span="file"),
    dict(type="TileWaveform", length=32000),
    dict(type="LogSpectrogram", nperseg=256, noverlap=16),
]
_disturb = [
    dict(type="SpectrogramNoise", amplitude=0.05),
    dict(type="FrequencyMask", width=9),
]
_end = dict(type="FormatAudio")
_open, _decode = dict(type="OpenVideo"), dict(type="DecodeVideo")
_open_flow, _decode_flow = dict(type="OpenFlowPair"), dict(type="DecodeFlowPair")
_train = dict(
    video=[_open, _sample, _decode, _augment],
    audio=[_sound, _disturb, _end],
    flow=[_open_flow, _sample, _decode_flow, _augment],
)
_test = dict(
    video=[_open, _still, _decode, _centre],
    audio=[_sound, _end],
    flow=[_open_flow, _still, _decode_flow, _centre],
)

_dataset = dict(
    type="SynthActionDataset",
    data_root=data_root,
    target="sketch",
    modalities=modalities,
)
train_dataloader = dict(num_workers=2, dataset=dict(_dataset, pipelines=_train))
val_dataloader = dict(
    num_workers=2,
    # The target for its curves, which need no more clips than its test split.
    dataset=dict(_dataset, watch_target=True, eval_split="test", pipelines=_test),
)
test_dataloader = dict(num_workers=2, dataset=dict(_dataset, pipelines=_test))

# Parts of the above, not settings of their own.
del _sample, _still, _shape, _augment, _centre, _sound, _disturb, _end, _train, _test
del _open, _decode, _open_flow, _decode_flow, _dataset
