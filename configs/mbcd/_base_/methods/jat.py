"""JAT: neither domain nor modality can be told from the features.

MDJA, ACM MM 2025. Weights 3.0, 0.5, 0.5, 0.1, reversals 0.3 and 0.1, temperature 1:
published code, which trains 15 epochs without weight decay and tests the last. The
official repository differs; docs/methods/jat.md says in what.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="JAT",
    model=dict(
        probe=False,
        objectives=[
            dict(
                type="JointAdversarialLoss",
                unimodal_weight=3.0,
                global_weight=0.5,
                local_weight=0.5,
                modality_weight=0.1,
                domain_reversal=0.3,
                modality_reversal=0.1,
                temperature=1.0,
                hidden_channels=512,
                dropout=0.5,
            ),
        ],
    ),
    # As the authors' code ran it, for the leaves below published/.
    published=dict(
        train_cfg=dict(max_epochs=15),
        optim_wrapper=dict(optimizer=dict(weight_decay=0)),
        param_scheduler=[],
    ),
)
