"""MBCD without modality dropout (Table 5, row 1), on the synthetic actions."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table5_no_dropout.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
