"""EMA on the synthetic actions; beta 0.97 of the short schedule."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/ema.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
