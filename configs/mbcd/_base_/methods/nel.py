"""NEL: two views of each clip agree, and the features fill their space.

Neurocomputing 658 (2025) 131754. Weights 1/2 (of everything, classification too), 0.7,
0.3 and 1 / 16 clips per batch, temperatures 0.25 and 0.1, 8 neighbours: published code,
which trains 15 epochs with a cosine to 1e-6. The training data must have two views of
each clip; leaves take train_dataloader from here too.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="NEL",
    model=dict(
        objectives=[
            dict(type="ClassificationObjective", weight=0.5),
            dict(
                type="NonpolarizedEmbedding",
                weight=0.5,
                unc_weight=0.7,
                contrast_weight=0.3,
                nee_weight=1 / 16,
                neighbours=8,
                unc_temperature=0.25,
                temperature=0.1,
                hidden_channels=2048,
                out_channels=128,
            ),
        ],
    ),
    train_dataloader=dict(dataset=dict(views=2)),
    # As the authors' code ran it, for the leaves below published/.
    published=dict(
        train_cfg=dict(max_epochs=15),
        optim_wrapper=dict(),
        param_scheduler=[dict(type="CosineAnnealingLR", T_max=15, eta_min=1e-6)],
    ),
)
