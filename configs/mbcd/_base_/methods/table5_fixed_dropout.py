"""Row 2 of the paper's Table 5: MBCD with a fixed dropout of 0.5; row 3 is MBCD."""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, fixed dropout",
    model=dict(neck=dict(mode="fixed", p=0.5)),
)
