"""EMA and gradient consistency (Table 4, row 4), on the synthetic actions.

The unimodal heads whose losses it follows add them.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_gcc.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
