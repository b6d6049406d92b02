"""MER-DG on top of SimMMDG, on HAC: MER-DG's paper.

One more objective. Sampling: published.
"""

_base_ = ["./simmmdg.py", "../_base_/add_ons/mer_dg.py"]
method = dict(name="SimMMDG + MER-DG")
model = dict(extra_objectives={{_base_.mer_dg}})
