"""Row 1 of the paper's Table 5: MBCD without modality dropout."""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, no dropout",
    model=dict(neck=dict(mode="none")),
)
