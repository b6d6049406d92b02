"""Row 5 of the paper's Table 4: EMA and the distillation loss."""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + DL",
    model=dict(neck=dict(mode="none"), inner_step=None),
)
