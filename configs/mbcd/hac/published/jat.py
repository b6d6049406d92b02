"""JAT on HAC as published code ran it; see docs/methods/jat.md.

Stems' BatchNorm drifts, audio's layer4 starts at random; 15 epochs, no decay.
Sampling: published.
"""

_base_ = "../jat.py"
model = dict(encoders={{_base_.published_encoders}})
train_cfg = {{_base_.method.published.train_cfg}}
optim_wrapper = {{_base_.method.published.optim_wrapper}}
param_scheduler = {{_base_.method.published.param_scheduler}}
