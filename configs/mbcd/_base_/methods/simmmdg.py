"""SimMMDG: translation, supervised contrast of the shared halves, feature splitting.

Dong et al., NeurIPS 2023. Weights 0.1, 3.0, 0.7, tau 0.1 and the sizes of translators
and projection heads: published code, the same for all data sets.

by_target are the values of upstream's commands, chosen by its authors for each target;
tools/train.py --per-target-values applies them. They were chosen on the very targets
that are reported: such a number is that of the authors' commands, not that of a method
which has not seen its target.
"""

_base_ = "./parts/late_fusion.py"


def _values(epochs, translation=0.1, hidden=2048):
    return {
        "train_cfg.max_epochs": epochs,
        "model.objectives.1.weight": translation,
        "model.objectives.1.hidden_channels": hidden,
    }


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
    by_target={
        # Modalities: per target the epochs, and what differs from the above.
        "video audio": dict(
            D1=_values(20),
            D2=_values(20),
            D3=_values(25),
            human=_values(10),
            animal=_values(10),
            cartoon=_values(10),
        ),
        "video flow": dict(
            D1=_values(15),
            D2=_values(15),
            D3=_values(15),
            human=_values(20),
            animal=_values(20),
            cartoon=_values(20),
        ),
        "audio flow": dict(
            D1=_values(10),
            D2=_values(20),
            D3=_values(20),
            human=_values(15),
            animal=_values(15),
            cartoon=_values(20),
        ),
        "video audio flow": dict(
            D1=_values(10, hidden=1024),
            D2=_values(20),
            D3=_values(15, translation=1.0),
            human=_values(15),
            animal=_values(10),
            cartoon=_values(15),
        ),
    },
)

# A part of the above, not a setting of its own.
del _values
