"""EMA and adaptive modality dropout, on EPIC-Kitchens: Table 4, row 3.

The unimodal heads that AMD compares add their losses. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table4_ema_amd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
