"""MBCD on HAC: Tables 1, 2 and 9, and 5, row 3 of MBCD's paper.

LayerNorm, no feature dropout. Sampling: published.
"""

_base_ = ["../_base_/hac.py", "../_base_/methods/mbcd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
