"""Row 4 of the paper's Table 4: EMA and the gradient consistency constraint.

The inner step follows the losses of the modalities' own heads, which train those heads
and are in the sum too.
"""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + GCC",
    model=dict(
        neck=dict(mode="none"), objectives=[dict(type="ClassificationObjective")]
    ),
)
