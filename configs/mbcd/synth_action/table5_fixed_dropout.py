"""Row 2 of Table 5: MBCD with a fixed dropout of 0.5; mbcd.py is row 3."""

_base_ = "./mbcd.py"
model = dict(neck=dict(mode="fixed", p=0.5))
