"""MER-DG on top of ERM, on EPIC-Kitchens: MER-DG's paper ("fusion" there).

One more objective. Sampling: published.
"""

_base_ = ["./erm.py", "../_base_/add_ons/mer_dg.py"]
method = dict(name="ERM + MER-DG")
model = dict(extra_objectives={{_base_.mer_dg}})
