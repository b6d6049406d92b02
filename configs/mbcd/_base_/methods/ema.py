"""EMA: ERM with LayerNorm whose averaged weights are evaluated.

Row 2 of the paper's Table 4. beta: eq. 7 and Table 7.
"""

method = dict(
    name="EMA",
    model=dict(
        norm=dict(type="LayerNorm", affine=False),
        neck=dict(type="ConcatFusion"),
        unimodal_head=dict(type="MLPHead"),
        probe=True,
        objectives=[dict(type="ClassificationObjective")],
    ),
    optim_wrapper=dict(type="OptimWrapper"),
    custom_hooks=[dict(type="TeacherEMAHook", beta=0.999)],
)
