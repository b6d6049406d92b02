"""CMRF on EPIC-Kitchens: Tables 1 to 3, 8 and 10 of MBCD's paper.

Mean from iteration 400; feature dropout 0.5 on video and flow. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens_baseline.py", "../_base_/methods/cmrf.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
