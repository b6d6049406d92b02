"""MBCD with the feature-statistics noise of its published code, on EPIC-Kitchens.

Sampling: published.
"""

_base_ = ["./mbcd.py", "../_base_/add_ons/dsu.py"]
method = dict(name="MBCD + DSU")
model = dict(encoders={{_base_.dsu}})
