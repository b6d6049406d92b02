"""NEL (Neurocomputing 2025) on EPIC-Kitchens: not in MBCD's paper.

Two views of a clip; feature dropout 0.5 on video and flow. Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens_baseline.py", "../_base_/methods/nel.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
train_dataloader = {{_base_.method.train_dataloader}}
