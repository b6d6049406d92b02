"""MBCD on HAC.

Sampling: published.
"""

_base_ = ["../_base_/hac.py", "../_base_/methods/mbcd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
