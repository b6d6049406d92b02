"""Row 3 of Table 4: EMA and adaptive modality dropout."""

_base_ = "./mbcd.py"
model = dict(inner_step=None, objectives=[dict(type="ClassificationObjective")])
