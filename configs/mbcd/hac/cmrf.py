"""CMRF on HAC: Tables 1, 2 and 9 of MBCD's paper.

Mean from iteration 100; feature dropout 0.5 on video and flow. Sampling: published.
"""

_base_ = ["../_base_/hac_baseline.py", "../_base_/methods/cmrf_hac.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
