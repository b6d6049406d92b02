"""What a step logs, on its way from the device to the CPU.

A value that is read from a GPU is there when the GPU has done all that it was asked
for, and meanwhile nobody asks it for more. So the values of a step are copied while the
GPU goes on, and handed out when they have arrived, usually in the course of the next
step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import CheckpointHook, Hook, LoggerHook, RuntimeInfoHook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor


class Arrival(Protocol):
    """When a copy is done: a ``torch.cuda.Event``."""

    def synchronize(self) -> None:
        """Waits for it."""


def arrival_of(device: torch.device) -> Arrival | None:
    """The end of what a GPU has been asked for until now; None for a CPU."""
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return event


class StepValues:
    """Losses, log values and what hooks ask for, of one step, in one copy.

    Args:
        position: The step's iteration and epoch, from 0.
        data_batch: The step's.
        outputs: Of ``train_step``. Scalars are fetched; all else stays as it is.
        hooks: One that must know what the device alone knows has left it as
            ``to_fetch``, a scalar, which is taken away from it.

    Attributes:
        iteration: From 1.
        epoch: From 1.
        data_batch: As given.
        outputs: On the device until :meth:`receive`.
        fetched: What hooks asked for, by hook; after :meth:`receive`.
    """

    def __init__(
        self,
        position: tuple[int, int],
        data_batch: object,
        outputs: Mapping[str, object] | None,
        hooks: Sequence[Hook],
    ) -> None:
        self.iteration, self.epoch = (place + 1 for place in position)
        self.data_batch, self.outputs = data_batch, dict(outputs or {})
        self.fetched: dict[object, Tensor] = {}
        asking = [h for h in hooks if getattr(h, "to_fetch", None) is not None]
        scalars: dict[object, Tensor] = {
            name: value.detach()
            for name, value in self.outputs.items()
            if torch.is_tensor(value) and value.dim() == 0
        }
        self.outputs |= scalars  # which hold no graph of the step
        asked = {hook: hook.to_fetch.detach() for hook in asking}
        for hook in asking:
            hook.to_fetch = None
        self._values = {k: value.double() for k, value in (scalars | asked).items()}
        self._arrival = self._start()

    def _start(self) -> Arrival | None:
        devices = [value.device for value in self._values.values()]
        device = next((d for d in devices if d.type == "cuda"), torch.device("cpu"))
        moving = [key for key, x in self._values.items() if x.device == device]
        if not moving:
            return None
        there = torch.stack([self._values[key] for key in moving])
        # Only into page-locked memory does the device copy by itself.
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=there.is_cuda)
        here.copy_(there, non_blocking=True)
        self._values |= dict(zip(moving, here.unbind(), strict=True))
        return arrival_of(device)

    @property
    def travels(self) -> bool:
        """Whether they come from a GPU.

        Not whether they are there: all processes must take them at the same step, and
        stop at the same step.
        """
        return self._arrival is not None

    def receive(self) -> None:
        """Waits for the values, and puts them in place."""
        if self._arrival is not None:
            self._arrival.synchronize()
        for key, value in self._values.items():
            if isinstance(key, str):
                self.outputs[key] = value
            else:
                self.fetched[key] = value


class TakesValues(Hook):
    """A hook that gets the values of a step when they have arrived.

    :class:`.ResumableTrainLoop` hands them out; below another loop the step waits.
    """

    admits_late_values = True  # see StepValuesQueue

    def after_values(self, runner: Runner, values: StepValues) -> None:
        """Gets them."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Below another loop, waits for the values and takes them."""
        if not _hands_out(runner.train_loop):
            position = runner.iter, runner.epoch
            values = StepValues(position, data_batch, outputs, [self])
            values.receive()
            self.after_values(runner, values)


def settle(runner: Runner) -> None:
    """Waits until the values of all steps so far are handed out to the hooks."""
    if _hands_out(runner.train_loop):
        runner.train_loop.settle()


def _hands_out(loop: BaseLoop) -> bool:
    return hasattr(loop, "settle")


class StepValuesQueue:
    """Hands out the values of steps, in their order.

    Every :class:`TakesValues` gets them, by priority. A GPU may be one step ahead of
    its values, and no more. It waits for them before any hook's ``after_train_iter``

    - where a hook says so by ``needs_values`` (a loss scaler, ``action='skip'``);
    - where the log is written, or an epoch ends;
    - with MMEngine's own ``RuntimeInfoHook`` or ``CheckpointHook`` in place of this
      package's: one reads the values, the other saves without calling :func:`settle`.

    Args:
        runner: Of the training.
        batches: Of an epoch.
    """

    def __init__(self, runner: Runner, batches: int) -> None:
        self._runner, self._batches = runner, batches
        self._steps: deque[StepValues] = deque()
        self._always = any(
            isinstance(hook, (RuntimeInfoHook, CheckpointHook))
            and not getattr(hook, "admits_late_values", False)
            for hook in runner.hooks
        )

    def take(
        self,
        batch_idx: int,
        position: tuple[int, int],
        data_batch: object,
        outputs: dict,
    ) -> dict:
        """Begins to fetch the values of a step.

        Args:
            batch_idx: Within the epoch.
            position: Iteration and epoch, from 0.
            data_batch: The step's.
            outputs: Of ``train_step``.

        Returns:
            ``outputs`` for ``after_train_iter``: on the CPU if they have arrived.
        """
        hooks = self._runner.hooks
        due = self._due(batch_idx)  # asks hooks for what is then taken away
        step = StepValues(position, data_batch, outputs, hooks)
        self._steps.append(step)
        self.hand_out(behind=0 if due else 1)
        return step.outputs

    def hand_out(self, behind: int = 0) -> None:
        """Waits for the values of all steps but the last ``behind``; hands them out.

        Values that need not travel are handed out at once.
        """
        while self._steps and (len(self._steps) > behind or not self._steps[0].travels):
            step = self._steps.popleft()
            step.receive()
            for hook in self._runner.hooks:
                if isinstance(hook, TakesValues):
                    hook.after_values(self._runner, step)

    def _due(self, batch_idx: int) -> bool:
        return (
            self._always
            or batch_idx + 1 == self._batches
            or any(
                hook.every_n_inner_iters(batch_idx, hook.interval)
                if isinstance(hook, LoggerHook)
                else getattr(hook, "needs_values", False)
                for hook in self._runner.hooks
            )
        )


@HOOKS.register_module()
class StepInfoHook(TakesValues, RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook``, which logs a step's values as they arrive."""

    def after_values(self, runner: Runner, values: StepValues) -> None:
        """Logs them."""
        RuntimeInfoHook.after_train_iter(
            self, runner, 0, values.data_batch, values.outputs
        )
