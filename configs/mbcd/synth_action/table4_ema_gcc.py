"""Row 4 of the paper's Table 4: EMA and the gradient consistency constraint.

The inner step follows the losses of the modalities' own heads, which train those heads
and are in the sum too.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_gcc.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
