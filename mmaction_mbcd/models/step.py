"""What a step is lent, and what one forward pass hands to the objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .functional import gradients_of, masked_mean

if TYPE_CHECKING:
    from .assembly import RecognizerParts


class StepOptimizer(Protocol):
    """What an optimizer wrapper offers to the model in the middle of a step."""

    def inner_update(
        self, loss: Tensor, params: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns theta' = theta - alpha * gradient of ``loss`` (eq. 5)."""

    def sync_confidences(
        self, sums: Tensor, counts: Tensor, present: list[bool]
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """Sums over processes if the wrapper synchronises; else what it was given."""

    def gradient(self, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as constants, taken with the loss scale where there is one."""


@dataclass
class Lent:
    """What others lend to the recognizer: never registered, copied or saved.

    Attributes:
        optimizer: The optimizer wrapper, for the length of one step.
        teacher: The averaged model, by the EMA hook; it appears in no parameter list,
            state dict or DDP bucket of the student.
        teacher_started: False in the iterations in which the teacher copies the
            student.
        beside: In evaluation, the name under which the lent model's predictions are
            reported beside the own ones; None reports none. MMEngine's EMA hook swaps
            weights for evaluation, so the lent model then holds the student.
    """

    optimizer: StepOptimizer | None = None
    teacher: RecognizerParts | None = None
    teacher_started: bool = True
    beside: str | None = None


def plain_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of ``loss`` as constants, zero where it does not depend on one.

    Raises:
        RuntimeError: Under float16 autocast, where small gradients underflow unless
            the optimizer wrapper scales the loss.
    """
    kind = loss.device.type
    if torch.is_autocast_enabled(kind) and (
        torch.get_autocast_dtype(kind) == torch.float16
    ):
        raise RuntimeError(
            "an objective takes gradients of its own, and in float16 they need the "
            "loss scale: set optim_wrapper.type to AmpMBCDOptimWrapper, or use bfloat16"
        )
    return gradients_of(loss, parameters)


@dataclass
class StepOutputs:
    """Everything that an objective may read. Objectives never call the model.

    ``N`` samples, ``C`` classes; dicts run over the modalities in declared order.

    Attributes:
        labels: ``(N,)`` class indices.
        domains: ``(N,)`` index of each sample's domain among the sources, -1 for a
            target.
        present: ``{modality: (N,) bool}``, which samples have the modality.
        rows: ``{modality: indices}`` of the present samples, known on the CPU:
            using them does not wait for the device. Empty: derive them.
        valid: ``(N,) bool``, which samples have any modality at all; None if all
            have. The others could not be read and take part in nothing.
        features: ``{modality: (N, d)}`` at theta: pooled, after LayerNorm if there
            is one. Rows of absent samples are zero.
        raw_features: The same before LayerNorm.
        unimodal_logits: ``{modality: (N, C)}`` at theta; empty without heads.
        unimodal_ce: ``{modality: scalar}``, their cross-entropies (means over the
            present samples); empty without gradient, for the teacher and in
            evaluation.
        probe: True if the unimodal heads only watch (detached features).
        fused_features: ``(N, sum d)``, what the fused head saw.
        fused_logits: ``(N, C)``; at theta' if the step has an inner update.
        teacher: The teacher's outputs for the same samples, without gradient.
        teacher_started: False in iterations in which the teacher copies the student.
        embeddings: ``{name: {modality: (N, k)}}``, see ``Objective.embed``.
        views: 1, or 2: rows ``[0, N / 2)`` are then first and ``[N / 2, N)`` second
            views of the same clips.
        theta: ``{modality: {name: parameter}}``, the trainable parameters of each
            encoder and of its unimodal head (``head.<name>``); empty for the teacher.
        gradient: ``(loss, parameters) -> gradients`` as constants, with the loss scale
            where there is one.
        losses: What earlier objectives of this step returned.
        logs: ``{name: scalar}`` for the log; keys must not contain "loss".
    """

    labels: Tensor | None = None
    domains: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    valid: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    raw_features: dict[str, Tensor] = field(default_factory=dict)
    unimodal_logits: dict[str, Tensor] = field(default_factory=dict)
    unimodal_ce: dict[str, Tensor] = field(default_factory=dict)
    probe: bool = False
    fused_features: Tensor | None = None
    fused_logits: Tensor | None = None
    teacher: StepOutputs | None = None
    teacher_started: bool = True
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    views: int = 1
    theta: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gradient: Callable[[Tensor, Sequence[Tensor]], list[Tensor]] = plain_gradient
    losses: dict[str, Tensor] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def accuracies(self) -> dict[str, Tensor]:
        """``{'acc/<head>': share}`` for the log, each over the present samples."""
        if self.labels is None:
            return {}
        heads = {"fused": (self.fused_logits, self.valid)} | {
            m: (logits, self.present[m]) for m, logits in self.unimodal_logits.items()
        }
        return {
            f"acc/{name}": masked_mean(
                (logits.argmax(1) == self.labels).float(), present
            )
            for name, (logits, present) in heads.items()
        }
