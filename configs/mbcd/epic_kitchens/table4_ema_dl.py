"""EMA and the distillation loss, on EPIC-Kitchens: Table 4, row 5.

The unimodal heads that it teaches add their losses. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table4_ema_dl.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
