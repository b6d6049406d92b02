"""GMP on top of SimMMDG, on HAC: Table 3 of GMP's paper.

One more objective, and its optimizer wrapper. Sampling: published.
"""

_base_ = ["./simmmdg.py", "../_base_/add_ons/gmp.py"]
method = dict(name="SimMMDG + GMP")
model = dict(extra_objectives={{_base_.gmp}})
optim_wrapper = dict(type="MBCDOptimWrapper")
