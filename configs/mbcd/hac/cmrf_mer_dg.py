"""MER-DG on top of CMRF, on HAC: MER-DG's paper.

One more objective. Sampling: published.
"""

_base_ = ["./cmrf.py", "../_base_/add_ons/mer_dg.py"]
method = dict(name="CMRF + MER-DG")
model = dict(extra_objectives={{_base_.mer_dg}})
