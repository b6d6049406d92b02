"""Checkpoints that survive a kill at any moment."""

import errno
import logging
import operator
import os
import os.path as osp
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from mmaction.registry import HOOKS
from mmengine.dist import get_world_size, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from ..errors import CheckpointError
from . import checkpoint_checks as checks
from .step_values import settle

_EXPERIMENT = "experiment"
_PENDING = "pending_gradients"
_KEPT = "kept_checkpoints"
_RESUMABLE = re.compile(r"(epoch|iter|timed_iter)_(\d+)\.pth")


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
        try:
            with open(temporary, "wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.remove(temporary)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(folder).free
                raise CheckpointError(
                    f"no room for {filepath}: it takes {len(obj):,} bytes, {free:,} "
                    f"are free ({error.strerror}). The checkpoints that are there are "
                    "intact: make room, and continue with --resume"
                ) from error
            raise
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
    - a checkpoint is written every ten minutes as well, also within an epoch;
    - one with a NaN or an infinite weight is not written;
    - what a killed run left behind is removed when training starts;
    - a checkpoint says what it is of (``meta['experiment']``), and one of another
      model or experiment is refused;
    - gradients of an unfinished accumulation are saved and restored;
    - the best checkpoint of a copied work directory is the copy, not the original;
    - of equally good epochs the later one is the best, as in the field's published
      code (MMEngine keeps the earlier one). A validation of some hundred clips has
      ties, and the later epoch has seen more.

    Args:
        args: As for :class:`CheckpointHook`.
        minutes: Time between the last checkpoint and one within an epoch,
            ``timed_iter_N.pth``; None for none. The last two checkpoints stay, of
            whichever kind.
        backend_args: ``dict(backend='atomic_local')`` unless given.
        kwargs: As for :class:`CheckpointHook`.

    Raises:
        CheckpointError: If there is no room for a checkpoint (what was there stays),
            if weights are not finite, if a loaded checkpoint has weights that do not
            fit, or is of another experiment.
    """

    admits_late_values = True  # see StepValuesQueue
    rule_map: ClassVar[dict[str, Callable[[float, float], bool]]] = {
        "greater": operator.ge,
        "less": operator.le,
    }

    def __init__(
        self,
        *args,
        minutes: float | None = 10.0,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        super().__init__(
            *args, backend_args=backend_args or dict(backend="atomic_local"), **kwargs
        )
        self.minutes = minutes
        self.loaded: checks.Fit | None = None
        self._gradients: dict | None = None
        self._experiment: dict | None = None
        self._written: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Prepares the folder; restores gradients of an unfinished accumulation."""
        info = runner.message_hub.runtime_info
        out_dir = self.out_dir or runner.work_dir
        for key in [k for k in info if k == "best_ckpt" or k.startswith("best_ckpt_")]:
            moved = osp.join(out_dir, osp.basename(str(info[key])))
            if osp.isfile(moved):
                runner.message_hub.update_info(key, moved)
        start = runner._load_from
        if start and osp.realpath(osp.dirname(start)) != osp.realpath(out_dir):
            # Resumed from elsewhere: files of those names here are another run's.
            for key in {_KEPT, "keep_ckpt_ids"} & info.keys():
                runner.message_hub.update_info(key, [])
        super().before_train(runner)
        self._experiment = checks.experiment(runner, runner.train_dataloader.dataset)
        self._saved_at = time.monotonic()
        self._tidy(runner)
        if self._gradients:
            for name, parameter in checks.module_of(runner).named_parameters():
                if name in self._gradients:
                    parameter.grad = self._gradients[name].to(parameter)
            self._gradients = None

    @master_only
    def _tidy(self, runner: Runner) -> None:
        """Removes what a killed run left: half a file, checkpoints that had successors.

        Those of a later iteration than this run starts from stay: the user may have
        chosen an earlier one.
        """
        kept = runner.message_hub.runtime_info.get(_KEPT, ())
        for name in os.listdir(self.out_dir) if osp.isdir(self.out_dir) else ():
            path = osp.join(self.out_dir, name)
            if name.endswith(".pth.part"):
                os.remove(path)
            match = _RESUMABLE.fullmatch(name)
            if match and name not in kept and kept and self.max_keep_ckpts > 0:
                now = runner.epoch if match[1] == "epoch" else runner.iter
                if int(match[2]) < now:
                    os.remove(path)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Writes a checkpoint if its time has come."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.minutes is None or not is_main_process():
            return
        # At the end of an epoch one is written anyway, or the user wants none.
        if time.monotonic() - self._saved_at >= 60 * self.minutes:
            if not self.end_of_epoch(runner.train_dataloader, batch_idx):
                self._save_timed(runner)

    def _save_timed(self, runner: Runner) -> None:
        settle(runner)
        name = f"timed_iter_{runner.iter + 1}.pth"
        with self._removals_last():
            self._keep(runner, name)
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                by_epoch=False,
                backend_args=self.backend_args,
            )
            self._written = osp.join(self.out_dir, name)
            with open(osp.join(runner.work_dir, "last_checkpoint"), "w") as file:
                file.write(self._written)
        self._saved_at = time.monotonic()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        settle(runner)
        with self._removals_last():
            self._keep(runner, self.filename_tmpl.format(step))
            super()._save_checkpoint_with_step(runner, step, meta)
            self._written = self.last_ckpt
        self._saved_at = time.monotonic()

    def _keep(self, runner: Runner, name: str) -> None:
        """Adds a checkpoint to those from which the run can go on; drops older ones.

        The last two stay at least, should the last be damaged. What stays is noted in
        the checkpoint itself.
        """
        info = runner.message_hub.runtime_info
        kept = [each for each in info.get(_KEPT, ()) if each != name] + [name]
        limit = max(2, self.max_keep_ckpts)
        dropped, rest = kept[:-limit], kept[-limit:]
        if self.max_keep_ckpts <= 0:  # all, but for those that time wrote
            timed = [each for each in dropped if each.startswith("timed")]
            dropped, rest = timed, [each for each in kept if each not in timed]
        runner.message_hub.update_info(_KEPT, rest)
        for each in dropped if is_main_process() else ():
            if osp.isfile(path := osp.join(self.out_dir, each)):
                self.file_backend.remove(path)

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
        """Adds what it is of, and gradients that wait for their accumulation."""
        checkpoint["meta"][_EXPERIMENT] = self._experiment
        self._refuse_not_finite(runner, checkpoint)
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
            for name, parameter in checks.module_of(runner).named_parameters()
            if parameter.grad is not None
        }

    def _refuse_not_finite(self, runner: Runner, checkpoint: dict) -> None:
        parameters = {n for n, _ in checks.module_of(runner).named_parameters()}
        averaged = {
            key.removeprefix("module."): value
            for key, value in (checkpoint.get("ema_state_dict") or {}).items()
        }
        for state in (checkpoint["state_dict"], averaged):
            if wrong := checks.not_finite(state, parameters):
                raise CheckpointError(
                    f"at iteration {runner.iter + 1} {len(wrong)} weights are not "
                    f"finite (such as {wrong[0]}): no checkpoint is written. The last "
                    f"one is {self.last_finite(runner)}"
                )

    def last_finite(self, runner: Runner) -> str:
        """The newest checkpoint that was written, for messages."""
        return str(self._written or runner._load_from or "none")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuses weights that do not fit and other experiments.

        A training may start from part of the weights (``load_from``), and says how
        much that is.
        """
        training = isinstance(runner._train_loop, BaseLoop)
        starts = training and not runner._resume
        config = runner.cfg.filename or "this config"
        what = f"{config} with {runner._load_from or 'the checkpoint to resume'}"
        # A file of bare weights is a state dict itself.
        weights = checkpoint.get("state_dict", checkpoint)
        self.loaded = checks.fit(checks.module_of(runner), weights)
        partial = starts or bool(runner.cfg.get("allow_partial"))
        checks.refuse_other_weights(self.loaded, what, partial)
        if not self.loaded.complete:
            text = f"{what}: {self.loaded}; the rest is as it was initialised"
            print_log(text, logger="current", level=logging.WARNING)
        if not starts:
            self._refuse_other_experiment(runner, checkpoint, training, what)
        if training and runner._resume:
            for text in checks.ignored_settings(runner, checkpoint):
                print_log(text, logger="current", level=logging.WARNING)
            optimizer = checkpoint.get("optimizer") or {}
            if optimizer.get("loss_scaler") == {}:  # bfloat16's, and torch refuses it
                del optimizer["loss_scaler"]
            # Until training starts.
            self._gradients = checkpoint.get(_PENDING)

    def _refuse_other_experiment(
        self, runner: Runner, checkpoint: dict, training: bool, what: str
    ) -> None:
        saved = (checkpoint.get("meta") or {}).get(_EXPERIMENT)
        if training:
            dataset = runner.train_dataloader.dataset
        else:
            loops = (runner._test_loop, runner._val_loop)
            built = [loop for loop in loops if isinstance(loop, BaseLoop)]
            dataset = built[0].dataloader.dataset if built else None
        if saved is None:
            if not training:
                print_log(
                    "the checkpoint does not say which domains it was trained on, so "
                    "that the target is unseen cannot be checked",
                    logger="current",
                    level=logging.WARNING,
                )
            return
        now = checks.experiment(runner, dataset)
        if training:
            checks.refuse_other_resume(saved, now, what)
        else:
            checks.refuse_leak(saved, now, getattr(dataset, "use", ""), what)
