"""MOOSA on your own videos, small networks from scratch."""

_base_ = ["../../_base_/own_videos_small.py", "../../_base_/methods/moosa.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
