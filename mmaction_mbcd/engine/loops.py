"""A training loop that a killed run can continue exactly."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import torch
from mmaction.registry import LOOPS
from mmengine.dist import get_rank
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..datasets.seeding import derive_seed

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
    - errors that the config alone explains are raised before the first step.

    The position needs no storage of its own: the batch within the epoch follows
    from the iteration. What was validated is kept with MMEngine's runtime
    information, which checkpoints hold.
    """

    def run(self) -> nn.Module:
        """Launches or continues training.

        Raises:
            ValueError: If model, data and optimizer wrapper do not fit, or if the
                checkpoint was written with another number of batches per epoch.
        """
        self._check_parts()
        self._check_position()
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
        for index, data_batch in enumerate(self._batches_from(start), start):
            self.run_iter(index, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Runs one step with random numbers of its own.

        The values to log are fetched from the device in one copy: the host's hook would
        wait for each of them.
        """
        seed = derive_seed(self.runner.seed, "step", self._iter, get_rank())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        outputs = runner.model.train_step(
            data_batch, optim_wrapper=runner.optim_wrapper
        )
        runner.call_hook(
            "after_train_iter",
            batch_idx=idx,
            data_batch=data_batch,
            outputs=_fetched(outputs),
        )
        self._iter += 1

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
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        problems = []
        wrapper = runner.optim_wrapper
        if getattr(model, "inner_step", None) is not None and not hasattr(
            wrapper, "inner_update"
        ):
            problems.append(
                "model.inner_step needs optim_wrapper.type MBCDOptimWrapper (or "
                f"AmpMBCDOptimWrapper); got {type(wrapper).__name__}"
            )
        classes = (getattr(self.dataloader.dataset, "metainfo", None) or {}).get(
            "classes"
        )
        num_classes = getattr(model, "num_classes", None)
        if classes is not None and num_classes not in (None, len(classes)):
            problems.append(
                f"model.num_classes is {num_classes}, but the dataset has "
                f"{len(classes)} classes ({', '.join(map(str, classes))})"
            )
        sources = getattr(self.dataloader.dataset, "sources", None)
        if sources is not None:
            problems += _domain_problems(model, list(sources))
        problems += _teacher_and_data_problems(model, self.dataloader.dataset)
        if len(self.dataloader) == 0:
            problems.append(
                f"train_dataloader yields no batch: {len(self.dataloader.dataset)} "
                f"samples, batch_size {self.dataloader.batch_size}, drop_last "
                f"{self.dataloader.drop_last}: lower batch_size or set "
                "drop_last=False"
            )
        if problems:
            raise ValueError("; ".join(problems))


def _fetched(outputs: dict) -> dict:
    """Losses and log values on the host; lists and other values stay as they are."""
    scalars = {k: v for k, v in outputs.items() if torch.is_tensor(v) and v.dim() == 0}
    if not scalars:
        return outputs
    device = next((v.device for v in scalars.values() if v.is_cuda), None)
    values = torch.stack([v.detach().to(device).double() for v in scalars.values()])
    return outputs | dict(zip(scalars, values.cpu().unbind(), strict=True))


def _domain_problems(model: nn.Module, sources: list[str]) -> list[str]:
    """An objective that tells domains apart must know how many there are."""
    needy = [
        type(objective).__name__
        for objective in getattr(model, "objectives", ())
        if "num_domains" in getattr(objective, "filled_in", ())
    ]
    if not needy or model.num_domains == len(sources):
        return []
    return [
        f"{', '.join(needy)} tells source domains apart: model.num_domains is "
        f"{model.num_domains}, but the dataset trains on {len(sources)} ({sources}). "
        "tools/train.py --sources sets both"
    ]


def _teacher_and_data_problems(model: nn.Module, dataset: object) -> list[str]:
    problems = []
    needy = [
        type(objective).__name__
        for objective in getattr(model, "objectives", ())
        if getattr(objective, "needs_teacher", False)
    ]
    if needy and model._bound.teacher is None:
        problems.append(
            f"{', '.join(needy)} distills from a teacher, but none is bound: add "
            "dict(type='TeacherEMAHook') to custom_hooks"
        )
    given, wanted = (
        getattr(dataset, "modalities", None),
        getattr(model, "modalities", None),
    )
    if given is not None and wanted is not None and set(wanted) - set(given):
        problems.append(
            f"the model reads {list(wanted)}, but the dataset yields {list(given)}: "
            "set model.modalities and the dataloaders' dataset.modalities alike "
            "(tools/train.py --modalities does both)"
        )
    optional = set(getattr(dataset, "optional_modalities", ())) & set(wanted or ())
    may_lack = optional or getattr(dataset, "on_error", "raise") == "skip"
    synced = [
        name
        for name, module in getattr(model, "objectives", nn.Module()).named_modules()
        if isinstance(module, nn.SyncBatchNorm)
    ]
    if synced and may_lack:
        problems.append(
            f"objectives have SyncBatchNorm ({synced[0]}), and a process with fewer "
            "than two valid samples of a modality would not take part in it, so all "
            "would wait for ever: leave sync_bn out, or set the datasets' "
            "optional_modalities=() and on_error='raise'"
        )
    synced = [
        m
        for m in sorted(optional)
        if any(isinstance(x, nn.SyncBatchNorm) for x in model.encoders[m].modules())
    ]
    if synced:
        problems.append(
            f"the encoders of {synced} have SyncBatchNorm, and a process whose batch "
            "lacks the modality would not take part in it, so all would wait for "
            "ever: leave sync_bn out, or set the datasets' optional_modalities=()"
        )
    return problems
