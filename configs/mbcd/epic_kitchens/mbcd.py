"""MBCD on EPIC-Kitchens: Tables 1 to 3, 8 and 10, and 4, row 6 of MBCD's paper.

LayerNorm, no feature dropout. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/mbcd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
