"""MBCD with the second-order term of eq. 6, on the synthetic actions."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/mbcd_second_order.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
