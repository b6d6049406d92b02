"""MBCD with the second-order term of eq. 6.

Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/mbcd_second_order.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
