"""GMP on top of MOOSA, on EPIC-Kitchens: Table 3 of GMP's paper.

One more objective, and its optimizer wrapper. Sampling: published.
"""

_base_ = ["./moosa.py", "../_base_/add_ons/gmp.py"]
method = dict(name="MOOSA + GMP")
model = dict(extra_objectives={{_base_.gmp}})
optim_wrapper = dict(type="MBCDOptimWrapper")
