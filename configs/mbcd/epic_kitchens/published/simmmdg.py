"""SimMMDG on EPIC-Kitchens as published code ran it; see docs/methods.md."""

_base_ = "../simmmdg.py"
model = dict(encoders={{_base_.drifting_stems}})
test_dataloader = dict(dataset=dict(eval_split="test"))
