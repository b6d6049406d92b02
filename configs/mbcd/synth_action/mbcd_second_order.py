"""MBCD with the second-order term of eq. 6."""

_base_ = "./mbcd.py"
optim_wrapper = dict(order=2)
