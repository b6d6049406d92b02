"""Your own videos at 112 pixels: 16 frames, 8 of flow, 5 s of sound.

RGB frames are every fourth, flow frames every eighth: both span 64 frames, as RGB does
in the paper's clips. Crop, flip and time agree between video and flow.
"""

_base_ = "./own_videos.py"

_rgb = dict(type="SampleClip", clip_len=16, frame_interval=4)
_flow = dict(type="SampleClip", clip_len=8, frame_interval=8)
_shape = dict(type="FormatClip")
_small = dict(type="ResizeClip", scale=(-1, 128))
_augment = [
    _small,
    dict(type="RandomResizedCrop", area_range=(0.3, 1.0)),
    dict(type="ResizeClip", scale=(112, 112), keep_ratio=False),
    dict(type="ClipFlip", flip_ratio=0.5),
    _shape,
]
_centre = [_small, dict(type="CenterCrop", crop_size=112), _shape]
_sound = [
    dict(type="LoadWaveform", sample_rate=16000, span="frames"),
    dict(type="TileWaveform", length=80000),
    dict(type="LogSpectrogram", nperseg=512, noverlap=256),
]
_disturb = [
    dict(type="SpectrogramNoise", amplitude=0.05),
    dict(type="FrequencyMask", width=9),
]
_open, _decode = dict(type="OpenVideo"), dict(type="DecodeVideo")
_open_flow, _decode_flow = dict(type="OpenFlowPair"), dict(type="DecodeFlowPair")
_end = dict(type="FormatAudio")
_train = dict(
    video=[_open, _rgb, _decode, _augment],
    audio=[_sound, _disturb, _end],
    flow=[_open_flow, _flow, _decode_flow, _augment],
)
_test = dict(
    video=[_open, dict(_rgb, test_mode=True), _decode, _centre],
    audio=[_sound, _end],
    flow=[_open_flow, dict(_flow, test_mode=True), _decode_flow, _centre],
)
train_dataloader = dict(
    num_workers=2, dataset=dict(pipelines=dict(_delete_=True, **_train))
)
val_dataloader = dict(
    num_workers=2, dataset=dict(pipelines=dict(_delete_=True, **_test))
)
test_dataloader = dict(
    num_workers=2, dataset=dict(pipelines=dict(_delete_=True, **_test))
)

# Parts of the above, not settings of their own.
del _rgb, _flow, _shape, _small, _augment, _centre, _sound, _disturb, _open, _decode
del _open_flow, _decode_flow, _end, _train, _test
