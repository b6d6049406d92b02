"""JAT (ACM MM 2025) on EPIC-Kitchens: not in MBCD's paper.

Feature dropout 0.5 on video and flow, as published. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens_baseline.py", "../_base_/methods/jat.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
