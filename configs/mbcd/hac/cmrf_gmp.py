"""GMP on top of CMRF, on HAC: Table 3 of GMP's paper.

One more objective, and its optimizer wrapper. Sampling: published.
"""

_base_ = ["./cmrf.py", "../_base_/add_ons/gmp.py"]
method = dict(name="CMRF + GMP")
model = dict(extra_objectives={{_base_.gmp}})
optim_wrapper = dict(type="MBCDOptimWrapper")
