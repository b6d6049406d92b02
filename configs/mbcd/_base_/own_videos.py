"""Everything of a run on your own videos but the method.

Classes and source domains are counted by tools/train.py.
"""

_base_ = [
    "./default_runtime.py",
    "./datasets/own_videos.py",
    "./models/slowfast_slowonly_resnet18.py",
    "./schedules/adam_paper_20e.py",
]
model = dict(modalities={{_base_.modalities}}, num_classes=None, num_domains=None)
