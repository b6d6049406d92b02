"""Your own videos: a folder with annotations.csv, videos/, flow/ and audio/.

Sampling is HAC's, but crop, flip and time agree between video and flow, and sound is
cut by each file's own frame rate. Classes and domains are those of annotations.csv; the
target must be named (tools/train.py --target).
"""

_base_ = "./hac.py"

data_root = "data/own_videos"
num_classes = None

_dataset = dict(
    type="VideoFolderDataset", data_root=data_root, target=None, joint_augment=True
)
_sound = dict(type="LoadWaveform", sample_rate=16000, span="frames")
_train = [
    _sound,
    {{_base_.published.spectrogram}},
    {{_base_.published.disturbance}},
    dict(type="FormatAudio"),
]
_test = [_sound, {{_base_.published.spectrogram}}, dict(type="FormatAudio")]
train_dataloader = dict(dataset=dict(_dataset, pipelines=dict(audio=_train)))
val_dataloader = dict(dataset=dict(_dataset, pipelines=dict(audio=_test)))
test_dataloader = dict(dataset=dict(_dataset, pipelines=dict(audio=_test)))

# Parts of the above, not settings of their own.
del _sound, _train, _test, _dataset
