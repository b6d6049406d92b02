"""A short schedule for small networks trained from scratch on the synthetic actions.

16 epochs of 15 steps are 240 steps at a constant rate. beta = 0.999 averages over
1,000 steps, longer than the run: the teacher would still hold 79 % of its random
initial weights and predict nothing. 0.97 averages over 33 steps, two epochs, and
forgets the initial weights to 0.07 %; the paper's 0.999 averages over two to four of
its epochs.
"""

short_beta = 0.97
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3, weight_decay=1e-4))
param_scheduler = []
train_cfg = dict(type="ResumableTrainLoop", max_epochs=16, val_interval=2)
