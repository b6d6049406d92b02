"""Everything of a run on the synthetic actions but the method."""

_base_ = [
    "./default_runtime.py",
    "./datasets/synth_action.py",
    "./models/small_scratch.py",
    "./schedules/adam_16e.py",
]
model = dict(
    num_classes={{_base_.num_classes}},
    modalities={{_base_.modalities}},
    num_domains=2,
)
