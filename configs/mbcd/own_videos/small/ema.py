"""EMA on the synthetic actions; row 2 of Table 4."""

_base_ = ["../../_base_/own_videos_small.py", "../../_base_/methods/ema.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = [dict(type="TeacherEMAHook", beta={{_base_.short_beta}})]
