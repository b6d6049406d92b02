"""Row 2 of the paper's Table 5: MBCD with a fixed dropout of 0.5; row 3 is MBCD.

Each modality is dropped with probability 0.5, but one always stays: given that, of two
each is dropped in a third of the samples, of three in 3/7.

Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table5_fixed_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
