"""MBCD with a fixed dropout of 0.5, on HAC: Table 5, row 2; row 3 is mbcd.py.

One modality is always kept. Sampling: published.
"""

_base_ = ["../_base_/hac.py", "../_base_/methods/table5_fixed_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
