"""GMP on top of RNA-Net, on EPIC-Kitchens: Table 3 of GMP's paper.

One more objective, and its optimizer wrapper. Sampling: published.
"""

_base_ = ["./rna_net.py", "../_base_/add_ons/gmp.py"]
method = dict(name="RNA-Net + GMP")
model = dict(extra_objectives={{_base_.gmp}})
optim_wrapper = dict(type="MBCDOptimWrapper")
