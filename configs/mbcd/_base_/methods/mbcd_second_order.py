"""MBCD with the second-order term of eq. 6."""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, second order",
    optim_wrapper=dict(order=2),
)
