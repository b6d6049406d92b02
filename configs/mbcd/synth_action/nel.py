"""NEL on the synthetic actions; two views of a clip."""

_base_ = ["../_base_/synth_action.py", "../_base_/methods/nel.py"]
model = {{_base_.method.model}}
optim_wrapper = {{_base_.method.optim_wrapper}}
custom_hooks = {{_base_.method.custom_hooks}}
train_dataloader = {{_base_.method.train_dataloader}}
