"""MOOSA on closed sets: SimMMDG with masked translation, jigsaw and entropy weights.

Dong et al., ECCV 2024. Entropy weight 1e-3, temperature 1, mask ratio 0.3, 4 parts,
128 permutations and the weights 1.0, 0.1, 3.0, 0.7: published code. Upstream has mask
ratios of 0.7 and 0.3 and entropy weights of 1e-3 to 1 that vary with the target.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="MOOSA",
    model=dict(
        probe=False,
        objectives=[
            dict(
                type="EntropyWeightedClassification",
                temperature=1.0,
                entropy_weight=1e-3,
            ),
            dict(
                type="JigsawLoss",
                weight=1.0,
                parts=4,
                permutations=128,
                hidden_channels=512,
            ),
            dict(
                type="TranslationLoss",
                weight=0.1,
                mask_ratio=0.3,
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
