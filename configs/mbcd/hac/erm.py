"""ERM on HAC: Tables 1, 2 and 9 of MBCD's paper.

Feature dropout 0.5 on video and flow, as published. Sampling: published.
"""

_base_ = ["../_base_/hac_baseline.py", "../_base_/methods/erm.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
