"""MBCD with the feature noise of its published code, on the synthetic actions."""

_base_ = ["./mbcd.py", "../_base_/add_ons/dsu.py"]
method = dict(name="MBCD + DSU")
model = dict(encoders={{_base_.dsu}})
