"""NEL on HAC as published code ran it; see docs/methods/nel.md.

Stems' BatchNorm drifts, audio's layer4 starts at random; 15 epochs, cosine.
Sampling: published.
"""

_base_ = "../nel.py"
model = dict(encoders={{_base_.published_encoders}})
train_cfg = {{_base_.method.published.train_cfg}}
optim_wrapper = {{_base_.method.published.optim_wrapper}}
param_scheduler = {{_base_.method.published.param_scheduler}}
