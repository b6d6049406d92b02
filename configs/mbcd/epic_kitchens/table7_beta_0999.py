"""MBCD with beta = 0.999, on EPIC-Kitchens: Table 7; the same as mbcd.py.

Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table7_beta_0999.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
