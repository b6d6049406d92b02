"""ERM on the synthetic actions."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/erm.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
