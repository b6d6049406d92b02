"""MBCD with a fixed dropout of 0.5 (Table 5, row 2), on the synthetic actions.

One modality is always kept.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table5_fixed_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
