"""Small networks trained from scratch on a few hundred clips of one's own.

500 training clips are 31 steps an epoch, 465 in all. beta = 0.98 averages over 50
steps; the paper's 0.999 would still hold 63 % of the random initial weights at the end.
"""

short_beta = 0.98
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3, weight_decay=1e-4))
param_scheduler = []
train_cfg = dict(type="ResumableTrainLoop", max_epochs=15, val_interval=3)
