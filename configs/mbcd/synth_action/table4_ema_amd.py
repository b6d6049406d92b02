"""Row 3 of the paper's Table 4: EMA and adaptive modality dropout.

AMD compares the modalities by their own heads, which are trained by their own losses:
those are in the sum too, beside the fused one.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_amd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
