"""SimMMDG on EPIC-Kitchens as published code ran it; see docs/methods.md.

Sampling: published.
"""

_base_ = "../simmmdg.py"
model = dict(encoders={{_base_.published_encoders}})
test_dataloader = dict(dataset=dict(eval_split="test"))
