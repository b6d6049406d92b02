"""Row 3 of the paper's Table 4: EMA and adaptive modality dropout.

AMD compares the modalities by their own heads, which are trained by their own losses:
those are in the sum too, beside the fused one.

Sampling: published.
"""

_base_ = ["../_base_/epic_kitchens.py", "../_base_/methods/table4_ema_amd.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
