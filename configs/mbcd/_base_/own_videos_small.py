"""Everything of a run on your own videos without a GPU but the method.

Small networks from scratch, in place of three large pretrained ones. Classes and source
domains are counted by tools/train.py.
"""

_base_ = [
    "./default_runtime.py",
    "./datasets/own_videos_small.py",
    "./models/small_scratch.py",
    "./schedules/adam_small_15e.py",
]
model = dict(modalities={{_base_.modalities}}, num_classes=None, num_domains=None)
