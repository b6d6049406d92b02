"""Row 1 of the paper's Table 5: MBCD without modality dropout.

Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table5_no_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
