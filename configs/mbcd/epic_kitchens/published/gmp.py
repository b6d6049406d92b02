"""GMP on EPIC-Kitchens as published code ran it; see docs/methods/gmp.md.

Stems' BatchNorm drifts, audio's layer4 starts at random; 15 epochs, no decay.
Test rows alone. Sampling: published.
"""

_base_ = "../gmp.py"
model = dict(encoders={{_base_.published_encoders}})
train_cfg = {{_base_.method.published.train_cfg}}
optim_wrapper = {{_base_.method.published.optim_wrapper}}
param_scheduler = {{_base_.method.published.param_scheduler}}
test_dataloader = dict(dataset=dict(eval_split="test"))
