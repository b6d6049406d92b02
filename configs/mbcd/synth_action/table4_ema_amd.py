"""EMA and adaptive modality dropout (Table 4, row 3), on the synthetic actions.

The unimodal heads that AMD compares add their losses.
"""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/table4_ema_amd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
