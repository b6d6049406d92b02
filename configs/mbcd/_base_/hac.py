"""Everything of a run on HAC but the method."""

_base_ = [
    "./default_runtime.py",
    "./datasets/hac.py",
    "./models/slowfast_slowonly_resnet18.py",
    "./schedules/adam_paper_20e.py",
]
model = dict(
    num_classes={{_base_.num_classes}},
    modalities={{_base_.modalities}},
    num_domains=2,
)
