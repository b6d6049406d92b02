"""A hook that kills its process, for tests of resuming; imported by the configs."""

import os
import signal

from mmaction.registry import HOOKS
from mmengine.hooks import Hook


@HOOKS.register_module()
class KillHook(Hook):
    """SIGKILL at the end of a training iteration, or within a validation.

    Args:
        after_iter: Number of iterations after which to die.
        in_val_of_epoch: Die in the second batch of this epoch's validation.
    """

    priority = "LOWEST"

    def __init__(self, after_iter=None, in_val_of_epoch=None):
        self.after_iter, self.in_val = after_iter, in_val_of_epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after_iter:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1 and runner.epoch == self.in_val:
            os.kill(os.getpid(), signal.SIGKILL)
