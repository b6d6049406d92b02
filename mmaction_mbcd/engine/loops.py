"""A training loop that a killed run can continue exactly, and loops that watch data."""

import functools
import itertools
import os
import random
from collections.abc import Sequence

import numpy as np
import torch
from mmaction.registry import LOOPS
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop, Runner, TestLoop, ValLoop
from torch import nn

from ..datasets.seeding import derive_seed
from .checkpoint_checks import module_of
from .data_faults import (
    SkippedSamples,
    absence_in_test,
    refuse_absence,
    watching_workers,
)
from .step_values import StepValuesQueue

_VALIDATED = "resume_validated_epoch"
_BATCHES = "resume_batches_per_epoch"


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Epoch-based training that resumes to the bit, wherever it was killed.

    Compared with :class:`EpochBasedTrainLoop`:

    - a checkpoint from the middle of an epoch continues at its next batch; with
      :class:`ResumableSampler` the skipped samples are not even read;
    - a validation that was due or running when the run was killed is done again
      (on the same weights, so with the same result);
    - every step draws its random numbers (dropout, masks) from a generator seeded
      by (seed, step, process), not by the process's history;
    - the seed of a resumed run reaches the sampler;
    - errors that the config alone explains are raised before the first step;
    - a data worker that dies is an error that names the sample, and too many skipped
      samples are one that lists them (:mod:`.data_faults`).

    The position needs no storage of its own: the batch within the epoch follows
    from the iteration. What was validated is kept with MMEngine's runtime
    information, which checkpoints hold.
    """

    def run(self) -> nn.Module:
        """Launches or continues training.

        Raises:
            ValueError: If model, data and optimizer wrapper do not fit, or if the
                checkpoint was written with another number of batches per epoch.
            DataError: If the data cannot be used.
        """
        with watching_workers(self.runner):
            return self._run()

    def _run(self) -> nn.Module:
        self._check_parts()
        self._check_position()
        _complete_determinism()
        sampler = self._sampler()
        if hasattr(sampler, "seed"):
            # Resuming without --seed restores the seed after the sampler was built.
            sampler.seed = self._common_seed()
        self.runner.call_hook("before_train")
        self.runner.message_hub.update_info(_BATCHES, len(self.dataloader))
        if self._iter == 0:
            # MMEngine names a run by the second: another run of this process may
            # have left its information under the same name.
            self.runner.message_hub.update_info(_VALIDATED, 0)
        self._decide_current_val_interval()
        if self._epoch > 0:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate_if_due()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Runs an epoch from its first batch that was not yet trained on."""
        start = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        skipped = SkippedSamples(self.dataloader)
        for index, data_batch in enumerate(self._batches_from(start), start):
            skipped.add(data_batch)
            self.run_iter(index, data_batch)
        self.settle()
        skipped.finish()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Runs one step with random numbers of its own.

        The values to log are fetched from the device in one copy, and a GPU does not
        wait until they have arrived (:mod:`.step_values`).
        """
        seed = derive_seed(self.runner.seed, "step", self._iter, get_rank())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        try:
            outputs = runner.model.train_step(
                data_batch, optim_wrapper=runner.optim_wrapper
            )
        except Exception:
            self.settle()  # the step before may not have been finite: then it says so
            raise
        outputs = self._values.take(idx, (self._iter, self._epoch), data_batch, outputs)
        runner.call_hook(
            "after_train_iter",
            batch_idx=idx,
            data_batch=data_batch,
            outputs=outputs,
        )
        self._iter += 1

    @functools.cached_property
    def _values(self) -> StepValuesQueue:
        return StepValuesQueue(self.runner, len(self.dataloader))

    def settle(self) -> None:
        """Waits until the values of all steps so far are handed out to the hooks."""
        self._values.hand_out()

    def _common_seed(self) -> int:
        """The seed that all processes share; with diff_rank_seed theirs differ."""
        different = self.runner._randomness_cfg.get("diff_rank_seed", False)
        return self.runner.seed - (get_rank() if different else 0)

    def _batches_from(self, start: int):
        if start == 0:
            return self.dataloader
        sampler = self._sampler()
        if hasattr(sampler, "set_start"):
            # An epoch that is complete ends with a smaller batch, perhaps.
            done = min(start * self.dataloader.batch_size, len(sampler))
            sampler.set_start(done)
            return self.dataloader
        return itertools.islice(self.dataloader, start, None)

    def _sampler(self):
        sampler = self.dataloader.sampler
        batch_sampler = getattr(self.dataloader, "batch_sampler", None)
        if not hasattr(sampler, "set_epoch") and batch_sampler is not None:
            sampler = getattr(batch_sampler, "sampler", sampler)
        return sampler

    def _validate_if_due(self) -> None:
        hub = self.runner.message_hub
        due = (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and (
                self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            )
        )
        starts = self._iter == self._epoch * len(self.dataloader)
        if due and starts and hub.runtime_info.get(_VALIDATED, 0) < self._epoch:
            # No checkpoint is written before the validation has ended, so the
            # mark reaches the disk only with its result.
            hub.update_info(_VALIDATED, self._epoch)
            self.runner.val_loop.run()

    def _check_position(self) -> None:
        was = self.runner.message_hub.runtime_info.get(_BATCHES)
        now = len(self.dataloader)
        if self._iter > 0 and was is not None and was != now:
            raise ValueError(
                f"the checkpoint was written with {was} batches per epoch, this run "
                f"has {now}: the batch size, the number of processes or the dataset "
                "changed, so the run cannot be continued exactly. Restore them, or "
                "start a new run from the weights (load_from without resume)"
            )

    def _check_parts(self) -> None:
        runner: Runner = self.runner
        model = module_of(runner)
        problems = []
        if self.val_interval < 1:
            problems.append(
                f"train_cfg.val_interval={self.val_interval} is not a number of epochs "
                "between validations: set 1 or more (without validation: "
                "val_cfg, val_dataloader and val_evaluator None, tools/train.py "
                "--no-validate)"
            )
        if hasattr(model, "training_problems"):
            problems += model.training_problems(
                self.dataloader.dataset, runner.optim_wrapper
            )
        if len(self.dataloader) == 0:
            problems.append(
                f"train_dataloader yields no batch: {len(self.dataloader.dataset)} "
                f"samples, batch_size {self.dataloader.batch_size}, drop_last "
                f"{self.dataloader.drop_last}: lower batch_size or set "
                "drop_last=False"
            )
        for loop in (self, runner.val_loop):
            refuse_absence(loop)
        problems += absence_in_test(runner)
        if problems:
            raise ValueError("; ".join(problems))


def _complete_determinism() -> None:
    """What ``randomness.deterministic`` of MMEngine leaves out.

    cuBLAS repeats its sums with a workspace of its own only, and torch refuses every
    matrix product on a GPU until that is set. cuBLAS reads it with the first one.
    """
    if torch.are_deterministic_algorithms_enabled():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class _WatchesData:
    """Comparing with MMEngine's loops, faults of the data end the run.

    A data worker that dies is named with its sample, and more skipped samples than the
    dataset's ``max_skipped`` are an error (:mod:`.data_faults`).
    """

    def run(self) -> dict:
        """Evaluates.

        Raises:
            DataError: If the data cannot be used.
        """
        refuse_absence(self)
        self._skipped = SkippedSamples(self.dataloader)
        with watching_workers(self.runner):
            return super().run()

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Counts the batch, and evaluates it."""
        self._skipped.add(data_batch)
        super().run_iter(idx, data_batch)
        if idx + 1 == len(self.dataloader):
            self._skipped.finish()


@LOOPS.register_module()
class WatchfulValLoop(_WatchesData, ValLoop):
    """Validation; see :class:`_WatchesData`."""


@LOOPS.register_module()
class WatchfulTestLoop(_WatchesData, TestLoop):
    """Test; see :class:`_WatchesData`."""
