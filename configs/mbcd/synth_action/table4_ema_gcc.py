"""Row 4 of Table 4: EMA and the gradient consistency constraint."""

_base_ = "./mbcd.py"
model = dict(neck=dict(mode="none"), objectives=[dict(type="ClassificationObjective")])
