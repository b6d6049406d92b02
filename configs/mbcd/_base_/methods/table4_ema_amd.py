"""Row 3 of the paper's Table 4: EMA and adaptive modality dropout.

AMD compares the modalities by their own heads, which are trained by their own losses:
those are in the sum too, beside the fused one.
"""

_base_ = "./mbcd.py"
method = dict(
    name="EMA + AMD",
    model=dict(inner_step=None, objectives=[dict(type="ClassificationObjective")]),
)
