"""The paper's schedule: Adam, lr 1e-4, 20 epochs, constant."""

optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-4, weight_decay=1e-4))
param_scheduler = []
train_cfg = dict(type="ResumableTrainLoop", max_epochs=20, val_interval=1)
