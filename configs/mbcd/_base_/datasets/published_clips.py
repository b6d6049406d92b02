"""Sampling, crops and spectrogram of the published code, for HAC and EPIC-Kitchens.

RGB: 32 frames, every second; flow: 8, every fourth; sound: tiled to 10 s. The centre
of a test clip is that of MMAction2 0.x, which the published code runs. RGB and flow
draw time, crop and flip independently; joint_augment=True draws them together.
"""

_base_ = "./loaders.py"

published = dict(
    rgb=dict(type="SampleClip", clip_len=32, frame_interval=2),
    rgb_centre=dict(
        type="SampleClip",
        clip_len=32,
        frame_interval=2,
        test_mode=True,
        centre="0.x",
    ),
    flow=dict(type="SampleClip", clip_len=8, frame_interval=4),
    flow_centre=dict(
        type="SampleClip",
        clip_len=8,
        frame_interval=4,
        test_mode=True,
        centre="0.x",
    ),
    augment=[
        dict(type="ResizeClip", scale=(-1, 256)),
        dict(
            type="RandomResizedCrop",
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
        ),
        dict(type="ResizeClip", scale=(224, 224), keep_ratio=False),
        dict(type="ClipFlip", flip_ratio=0.5),
        dict(type="FormatClip"),
    ],
    rgb_whole=[
        dict(type="ResizeClip", scale=(-1, 256)),
        dict(type="CenterCrop", crop_size=224),
        dict(type="FormatClip"),
    ],
    flow_whole=[
        dict(type="ResizeClip", scale=(-1, 256)),
        dict(type="CenterCrop", crop_size=256),
        dict(type="FormatClip"),
    ],
    spectrogram=[
        dict(type="TileWaveform", length=160000),
        dict(type="LogSpectrogram", nperseg=512, noverlap=353),
    ],
    disturbance=[
        dict(type="SpectrogramNoise", amplitude=0.05),
        dict(type="FrequencyMask", width=9),
    ],
)
