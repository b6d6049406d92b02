"""CMRF on the synthetic actions; mean from iteration 100, as on HAC."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/cmrf_hac.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
