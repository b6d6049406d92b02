"""SimMMDG: translation, supervised contrast of the shared halves, feature splitting.

Dong et al., NeurIPS 2023. Weights 0.1, 3.0, 0.7, tau 0.1 and the sizes of translators
and projection heads: published code, the same for all data sets; upstream varies the
first with the target.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="SimMMDG",
    model=dict(
        objectives=[
            dict(type="ClassificationObjective"),
            dict(
                type="TranslationLoss",
                weight=0.1,
                mask_ratio=0.0,
                hidden_channels=2048,
                dropout=0.5,
            ),
            dict(
                type="SupervisedContrastiveLoss",
                weight=3.0,
                temperature=0.1,
                hidden_channels=2048,
                out_channels=128,
            ),
            dict(type="FeatureSplitLoss", weight=0.7),
        ],
    ),
)
