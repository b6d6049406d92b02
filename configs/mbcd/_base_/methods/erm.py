"""ERM: one cross-entropy on the concatenated features.

Row 1 of the paper's Table 4. The probes watch: they report each modality's accuracy
from detached features and change nothing.
"""

method = dict(
    name="ERM",
    model=dict(
        norm=None,
        neck=dict(type="ConcatFusion"),
        unimodal_head=dict(type="MLPHead"),
        probe=True,
        objectives=[dict(type="ClassificationObjective")],
    ),
    optim_wrapper=dict(type="OptimWrapper"),
    custom_hooks=[],
)
