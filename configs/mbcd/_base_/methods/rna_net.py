"""RNA-Net: the modalities' mean feature norms are pulled together.

Planamente et al., WACV 2022. weight 1.0 and the direction of the ratios: published
code of the benchmark arXiv 2605.06643, as in the other configs of compared methods.
There the unimodal heads are one linear layer; here they are probes, as ERM's.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="RNA-Net",
    model=dict(
        objectives=[
            dict(type="ClassificationObjective"),
            dict(type="NormAlignmentLoss", weight=1.0, denominator="audio"),
        ],
    ),
)
