"""EMA and gradient consistency, on EPIC-Kitchens: Table 4, row 4.

The unimodal heads whose losses it follows add them. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table4_ema_gcc.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
