"""Row 5 of the paper's Table 4: EMA and the distillation loss.

Distillation also teaches the modalities' own heads, so their losses are in the sum too.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_dl.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
