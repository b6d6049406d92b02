"""EMA on HAC; MBCD's paper has it on EPIC-Kitchens (Table 4, row 2).

LayerNorm, no feature dropout. Sampling: published.
"""

_base_ = ["../_base_/hac.py", "../_base_/methods/ema.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
