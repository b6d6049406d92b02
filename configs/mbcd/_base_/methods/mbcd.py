"""MBCD: adaptive modality dropout, gradient consistency, collaborative distillation.

Eqs. 2-9. lambda = 1, alpha = 1e-4: the paper's implementation details; beta = 0.999:
Table 7's best.
"""

method = dict(
    name="MBCD",
    model=dict(
        norm=dict(type="LayerNorm", affine=False),
        neck=dict(type="AMDFusion", mode="adaptive"),
        unimodal_head=dict(type="MLPHead"),
        probe=False,
        inner_step=dict(scope=".*", bn_second_pass="discard"),
        objectives=[
            dict(type="ClassificationObjective"),
            dict(type="CollaborativeDistillation", weight=1.0),
        ],
    ),
    optim_wrapper=dict(type="MBCDOptimWrapper", inner_lr=1e-4, order=1),
    custom_hooks=[dict(type="TeacherEMAHook", beta=0.999)],
    # As its published code ran it, for the leaves below published/.
    published=dict(
        model=dict(
            inner_step=dict(bn_second_pass="shared"),
            encoders=dict(
                video=dict(stem_norm_eval=False, dsu=0.5),
                audio=dict(stem_norm_eval=False, dsu=0.5),
                flow=dict(stem_norm_eval=False, dsu=0.5),
            ),
        ),
    ),
)
