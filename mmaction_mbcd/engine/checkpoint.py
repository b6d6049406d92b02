"""Checkpoints that survive a kill at any moment."""

import logging
import operator
import os
import os.path as osp
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from mmaction.registry import HOOKS
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

_PENDING = "pending_gradients"


@register_backend("atomic_local")
class AtomicLocalBackend(LocalBackend):
    """Local files that are either the old ones or complete new ones.

    MMEngine's local backend writes in place; a kill in the middle leaves a
    truncated file under the final name. This one writes beside it, syncs to disk
    and renames. Removals can be postponed until their successors exist.
    """

    # Of the class: MMEngine makes a new backend for every call, and the hook that
    # removes and the runner that writes must know of each other.
    _postponed: ClassVar[list[str] | None] = None

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Writes ``obj`` to ``filepath``, atomically."""
        filepath = os.fspath(filepath)
        folder = osp.dirname(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        # One name per target: what a killed run left is overwritten, not piled up.
        temporary = f"{filepath}.part"
        with open(temporary, "wb") as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, filepath)
        if self._postponed and filepath in self._postponed:
            self._postponed.remove(filepath)  # it is another file now
        # The rename itself must reach the disk before an old file may go.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = "utf-8"
    ) -> None:
        """Writes text to ``filepath``, atomically."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | os.PathLike) -> None:
        """Removes a file, or notes it for the end of :meth:`removals_last`."""
        if self._postponed is None:
            super().remove(filepath)
        else:
            self._postponed.append(os.fspath(filepath))

    @contextmanager
    def removals_last(self) -> Iterator[None]:
        """Within this context files are removed at its end, if nothing failed."""
        cls = AtomicLocalBackend
        if cls._postponed is not None:  # nested: the outermost one removes
            yield
            return
        cls._postponed = []
        try:
            yield
            for filepath in cls._postponed:
                if osp.isfile(filepath):
                    super().remove(filepath)
        finally:
            cls._postponed = None


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook, safe against a kill and a moved work directory.

    Compared with :class:`CheckpointHook`:

    - files are written by :class:`AtomicLocalBackend`, and an old checkpoint (also
      an old best one) is removed only after the new one is complete;
    - gradients of an unfinished accumulation are saved and restored;
    - the best checkpoint of a copied work directory is the copy, not the original;
    - of equally good epochs the later one is the best, as in the field's published
      code (MMEngine keeps the earlier one). A validation of some hundred clips has
      ties, and the later epoch has seen more.

    Args:
        args: As for :class:`CheckpointHook`.
        backend_args: ``dict(backend='atomic_local')`` unless given.
        kwargs: As for :class:`CheckpointHook`.
    """

    rule_map: ClassVar[dict[str, Callable[[float, float], bool]]] = {
        "greater": operator.ge,
        "less": operator.le,
    }

    def __init__(self, *args, backend_args: dict | None = None, **kwargs) -> None:
        super().__init__(
            *args, backend_args=backend_args or dict(backend="atomic_local"), **kwargs
        )
        self._gradients: dict | None = None

    def before_train(self, runner: Runner) -> None:
        """Prepares the folder; restores gradients of an unfinished accumulation."""
        info = runner.message_hub.runtime_info
        out_dir = self.out_dir or runner.work_dir
        for key in [k for k in info if k == "best_ckpt" or k.startswith("best_ckpt_")]:
            moved = osp.join(out_dir, osp.basename(str(info[key])))
            if osp.isfile(moved):
                runner.message_hub.update_info(key, moved)
        super().before_train(runner)
        if self._gradients:
            for name, parameter in _module(runner).named_parameters():
                if name in self._gradients:
                    parameter.grad = self._gradients[name].to(parameter)
            self._gradients = None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        if isinstance(self.file_backend, AtomicLocalBackend):
            with self.file_backend.removals_last():
                yield
        else:  # a remote backend has its own guarantees
            yield

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds gradients that wait for the rest of their accumulation."""
        wrapper = runner.optim_wrapper
        if "optimizer" not in checkpoint or wrapper.should_update():
            return
        if get_world_size() > 1 and is_main_process():
            print_log(
                "a checkpoint within a gradient accumulation holds the gradients of "
                "process 0 alone; save at a multiple of accumulative_counts",
                logger="current",
                level=logging.WARNING,
            )
        checkpoint[_PENDING] = {
            name: parameter.grad.detach().cpu()
            for name, parameter in _module(runner).named_parameters()
            if parameter.grad is not None
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps pending gradients until training starts."""
        if runner._resume:
            self._gradients = checkpoint.get(_PENDING)


def _module(runner: Runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
