"""Row 3 of the paper's Table 4: EMA and adaptive modality dropout."""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + AMD",
    model=dict(inner_step=None, objectives=[dict(type="ClassificationObjective")]),
)
