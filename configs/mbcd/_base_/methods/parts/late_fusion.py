"""What the compared methods share: concatenation, and a linear head per modality.

The published code of the benchmark (arXiv 2605.06643). probe=True: the unimodal heads
only watch, where a method does not use them (there they stay untrained).
"""

method = dict(
    model=dict(
        norm=None,
        neck=dict(type="ConcatFusion"),
        unimodal_head=dict(type="MLPHead", hidden_channels=None),
        probe=True,
    ),
    optim_wrapper=dict(type="OptimWrapper"),
    custom_hooks=[],
)
