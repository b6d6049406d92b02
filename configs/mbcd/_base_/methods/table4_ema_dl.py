"""Row 5 of the paper's Table 4: EMA and the distillation loss.

Distillation also teaches the modalities' own heads, so their losses are in the sum too.
"""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + DL",
    model=dict(neck=dict(mode="none"), inner_step=None),
)
