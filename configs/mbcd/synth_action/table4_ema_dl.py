"""Row 5 of Table 4: EMA and the distillation loss."""

_base_ = "./mbcd.py"
model = dict(neck=dict(mode="none"), inner_step=None)
