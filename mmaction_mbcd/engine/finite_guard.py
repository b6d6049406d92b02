"""Stops a run at its first step that is not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from mmaction.registry import HOOKS
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from ..errors import DivergenceError
from .checkpoint import ResumableCheckpointHook
from .checkpoint_checks import module_of
from .step_values import StepValues, TakesValues


@HOOKS.register_module()
class FiniteGuardHook(TakesValues):
    """Stops a run whose losses or gradients are NaN or infinite.

    It looks at the losses and at one number more, whether the gradients are finite,
    that the loop has fetched from the device together, before any other hook: no
    checkpoint holds the step, and it is not logged. On a GPU the next step may have
    begun by then, and the teacher in memory have averaged this one. In float16 the
    scaler skips such steps by design and lowers its scale; then only a long row of
    them, or a scale that has vanished, stops the run.

    Args:
        action: ``'stop'``, or ``'skip'``: go on as if the step had not been, up to
            ``limit`` times in a run. It waits for the device at every step, and keeps
            a copy of BatchNorm's statistics.
        limit: Steps that may be skipped; with a loss scaler, in a row.

    Raises:
        ValueError: For another action.
        DivergenceError: In training, with the term, its modality, the samples, the step
            and the last checkpoint.
    """

    priority = "HIGHEST"

    def __init__(self, action: str = "stop", limit: int = 20) -> None:
        if action not in ("stop", "skip"):
            raise ValueError(
                f"FiniteGuardHook: action must be stop or skip; got {action!r}"
            )
        self.action, self.limit = action, limit
        self.skipped = 0
        self._handle = None
        self.to_fetch: Tensor | None = None  # whether the gradients are finite
        self._marked: torch.optim.Optimizer | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Watches the optimizer."""
        self._scaled = _scales(runner.optim_wrapper)
        self.after_train(runner)
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)
        if optimizer is not None:
            self._handle = optimizer.register_step_pre_hook(self._before_step)

    def after_train(self, runner: Runner) -> None:
        """Stops watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        norms = torch._foreach_norm(gradients)
        self.to_fetch = torch.stack([n.to(norms[0]) for n in norms]).isfinite().all()
        if self.action == "skip" and not bool(self.to_fetch):
            for parameter in parameters:
                parameter.grad = None  # the optimizer passes it over
            # What loss scalers tell a fused optimizer; the teacher looks at it too.
            optimizer.found_inf = torch.ones(())
            self._marked = optimizer

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Keeps BatchNorm's statistics, should the step be skipped."""
        if self._marked is not None:
            del self._marked.found_inf
            self._marked = None
        if self.action == "skip":
            buffers = module_of(runner).buffers()
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    @property
    def needs_values(self) -> bool:
        """Whether a step's end depends on them: it may be undone."""
        return self._scaled or self.action == "skip"

    def after_values(self, runner: Runner, values: StepValues) -> None:
        """Stops, or counts a skipped step."""
        finite = values.fetched.get(self)
        wrong = [
            name
            for name, value in values.outputs.items()
            if "loss" in name and _is_wrong(value)
        ]
        if self._scaled and self.every_n_train_iters(runner, self.limit):
            self._check_scale(runner)
        if not wrong and (finite is None or bool(finite)):
            if self._scaled:
                self.skipped = 0
            return
        if not self.needs_values:
            raise DivergenceError(self._described(runner, wrong, values))
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self.skipped += 1
        text = self._described(runner, wrong, values)
        if self.skipped > self.limit:
            row = "in a row " if self._scaled else ""
            raise DivergenceError(f"{self.skipped} steps {row}were not finite. {text}")
        level = logging.INFO if self._scaled else logging.WARNING
        count = f"{self.skipped} of at most {self.limit}"
        print_log(f"step skipped ({count}): {text}", logger="current", level=level)

    def _check_scale(self, runner: Runner) -> None:
        scale = runner.optim_wrapper.loss_scaler.get_scale()
        if scale < 2.0**-10:
            raise DivergenceError(
                f"iteration {runner.iter + 1}: the loss scale fell to {scale:.3g}, so "
                "gradients are not finite at any scale. The last checkpoint is "
                f"{_last_checkpoint(runner)}. Train in float32 or bfloat16, or lower "
                "the learning rate"
            )

    def _described(
        self, runner: Runner, wrong: Sequence[str], values: StepValues
    ) -> str:
        step = f"iteration {values.iteration} (epoch {values.epoch})"
        terms = [name for name in wrong if name != "loss"] or wrong
        if terms:
            modalities = getattr(module_of(runner), "modalities", ())
            names = ", ".join(
                f"{term} (modality {m})"
                if (m := next((m for m in modalities if m in term), None))
                else term
                for term in terms
            )
            what = f"{names} is not finite"
        else:
            what = "all losses are finite, but the gradients are not"
        return (
            f"{step}: {what}. {_samples(values.data_batch)}The last checkpoint is "
            f"{_last_checkpoint(runner)}. Lower the learning rate, look at the data "
            "with tools/data/check.py, or leave such steps out with --cfg-options "
            "default_hooks.finite.action=skip"
        )


def _scales(wrapper: object) -> bool:
    """Whether a loss scaler expects steps that are not finite."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return isinstance(wrapper, AmpOptimWrapper) and bool(
        scaler is not None and scaler.is_enabled()
    )


def _is_wrong(value: object) -> bool:
    if torch.is_tensor(value):
        return value.is_floating_point() and not bool(torch.isfinite(value).all())
    return isinstance(value, float) and not math.isfinite(value)


def _samples(data_batch: object) -> str:
    """The samples with inputs that are not finite, else those of the batch."""
    if not isinstance(data_batch, Mapping):
        return ""
    samples = list(_flat(data_batch.get("data_samples") or ()))
    names = [str(s.metainfo.get("sample_id", "?")) for s in samples]
    found = []
    for modality, inputs in dict(data_batch.get("inputs") or {}).items():
        found += [
            f"{name} ({modality})"
            for name, x in zip(names, inputs, strict=False)
            if torch.is_tensor(x) and x.is_floating_point() and _is_wrong(x)
        ]
    if found:
        return f"Samples whose data is not finite: {', '.join(found)}. "
    return f"Samples: {', '.join(names)}. " if names else ""


def _flat(samples: Sequence) -> Iterator[object]:
    for each in samples:
        if isinstance(each, (list, tuple)):
            yield from _flat(each)
        else:
            yield each


def _last_checkpoint(runner: Runner) -> str:
    for hook in runner.hooks:
        if isinstance(hook, ResumableCheckpointHook):
            return hook.last_finite(runner)
    return "unknown"
