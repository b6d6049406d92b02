"""MBCD: adaptive modality dropout, gradient consistency, collaborative distillation.

Eqs. 2-9. alpha = 1e-4 and lambda = 1 are the published code's, the paper has no
values; beta = 0.999 is Table 7's best.
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
)
