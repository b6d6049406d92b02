"""ERM on EPIC-Kitchens: Tables 1, 2 and 8, and 4, row 1 of MBCD's paper.

Feature dropout 0.5 on video and flow, as published. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens_baseline.py", "../_base_/methods/erm.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
