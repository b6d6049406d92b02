"""Row 4 of the paper's Table 4: EMA and the gradient consistency constraint."""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + GCC",
    model=dict(
        neck=dict(mode="none"), objectives=[dict(type="ClassificationObjective")]
    ),
)
