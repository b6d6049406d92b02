"""SimMMDG on EPIC-Kitchens: Tables 1 to 3, 8 and 10 of MBCD's paper.

Feature dropout 0.5 on video and flow, as published. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens_baseline.py", "../_base_/methods/simmmdg.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
