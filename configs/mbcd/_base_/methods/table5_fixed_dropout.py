"""Row 2 of the paper's Table 5: MBCD with a fixed dropout of 0.5; row 3 is MBCD.

Each modality is dropped with probability 0.5, but one always stays: given that, of two
each is dropped in a third of the samples, of three in 3/7.
"""

_base_ = "./mbcd.py"
method = dict(
    name="MBCD, fixed dropout",
    model=dict(neck=dict(mode="fixed", p=0.5)),
)
