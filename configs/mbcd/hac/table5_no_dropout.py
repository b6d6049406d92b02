"""MBCD without modality dropout, on HAC: Table 5, row 1.

Sampling: published.
"""

_base_ = ["../_base_/hac.py", "../_base_/methods/table5_no_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
