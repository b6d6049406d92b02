"""GMP on top of another method, MOOSA, on the synthetic actions."""

_base_ = ["./moosa.py", "../_base_/add_ons/gmp.py"]
method = dict(name="MOOSA + GMP")
model = dict(extra_objectives={{_base_.gmp}})
optim_wrapper = dict(type="MBCDOptimWrapper")
