"""Everything of a run on EPIC-Kitchens but the method."""

_base_ = [
    "./default_runtime.py",
    "./datasets/epic_kitchens.py",
    "./models/slowfast_slowonly_resnet18.py",
    "./schedules/adam_paper_20e.py",
]
model = dict(
    num_classes={{_base_.num_classes}},
    modalities={{_base_.modalities}},
    num_domains=2,
)
