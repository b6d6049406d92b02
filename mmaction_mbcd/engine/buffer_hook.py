"""Keeps BatchNorm statistics equal on all processes."""

import torch
from mmaction.registry import HOOKS
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm


@HOOKS.register_module()
class AverageBatchNormHook(Hook):
    """Averages the running statistics of BatchNorm over processes at every step.

    MMEngine's ``SyncBuffersHook`` does so at the end of an epoch. Until then every
    process would have statistics of its own, average another teacher from them, and a
    checkpoint would hold only process 0's, so that a resumed run would differ.
    One small collective per step, before the teacher is averaged; statistics of frozen
    parts do not move and are left out. With one process it does nothing.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Starts from process 0's statistics, as the weights do."""
        if dist.get_world_size() > 1:
            for buffer in self._statistics(runner, moving=False):
                dist.broadcast(buffer)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Replaces each statistic by its mean over processes."""
        if dist.get_world_size() == 1:
            return
        buffers = self._statistics(runner)
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat, op="mean")
        for buffer, mean in zip(
            buffers, flat.split([b.numel() for b in buffers]), strict=True
        ):
            buffer.copy_(mean.view_as(buffer))

    @staticmethod
    def _statistics(runner: Runner, moving: bool = True) -> list[torch.Tensor]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm) and (module.training or not moving)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
