"""Row 1 of Table 5: MBCD without modality dropout."""

_base_ = "./mbcd.py"
model = dict(neck=dict(mode="none"))
