"""MER-DG on top of another method, ERM, on the synthetic actions."""

_base_ = ["./erm.py", "../_base_/add_ons/mer_dg.py"]
method = dict(name="ERM + MER-DG")
model = dict(extra_objectives={{_base_.mer_dg}})
