"""GMP: gradients of classes and domains, modulated and projected.

AAAI 2026 (arXiv 2603.14175). alpha 0.5 and 0.5, domain weight 0.5, reversal 0.3 and
the unimodal weight of 3.0, whose gradient is the modulated one: published code, which
trains 15 epochs without weight decay and tests the last; the paper gives no values.
The discriminator is trained, which the published code leaves out; docs/methods/gmp.md.
"""

_base_ = "./parts/late_fusion.py"

method = dict(
    name="GMP",
    model=dict(
        probe=False,
        objectives=[
            dict(type="ClassificationObjective", unimodal_weight=3.0),
            dict(
                type="GradientModulation",
                terms=["unimodal"],
                alpha_class=0.5,
                alpha_domain=0.5,
                domain_weight=0.5,
                reversal=0.3,
            ),
        ],
    ),
    # It lends the loss scale to GMP's own gradients; no inner step is taken.
    optim_wrapper=dict(type="MBCDOptimWrapper"),
    # As the authors' code ran it, for the leaves below published/.
    published=dict(
        train_cfg=dict(max_epochs=15),
        optim_wrapper=dict(optimizer=dict(weight_decay=0)),
        param_scheduler=[],
    ),
)
