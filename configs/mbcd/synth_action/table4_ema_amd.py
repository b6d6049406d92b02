"""Row 3 of the paper's Table 4: EMA and adaptive modality dropout."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_amd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
