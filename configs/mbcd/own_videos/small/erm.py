"""ERM on the synthetic actions; row 1 of Table 4."""

_base_ = ["../../_base_/own_videos_small.py", "../../_base_/methods/erm.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
