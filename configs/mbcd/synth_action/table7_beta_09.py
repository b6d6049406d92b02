"""MBCD with beta = 0.9 (Table 7), on the synthetic actions."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table7_beta_09.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
