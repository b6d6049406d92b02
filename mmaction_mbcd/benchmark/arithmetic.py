"""The floating-point operations that a method's step cannot do without."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.checkpoint_checks import module_of
from ..models import MultiModalRecognizer
from ..models.batch import Batch
from ..models.stages import State
from .counting import count_flops
from .training import Training


class Passes(NamedTuple):
    """How often a step runs each part; every method runs the stem once.

    Attributes:
        forward: Of the branches.
        backward: Of the branches.
    """

    forward: int
    backward: int


class Parts(NamedTuple):
    """FLOPs of all encoders' stems, and of their branches forward and backward."""

    stem: int
    forward: int
    backward: int


def needed_passes(model: MultiModalRecognizer) -> Passes:
    """The passes of docs/architecture.md's table of costs.

    An inner step runs the branches again, and needs its own gradient and the outer one
    through both runs; a teacher runs them without gradient; an objective that reads
    the parameters takes two gradients of its own.
    """
    inner = model.inner_step is not None
    teacher = any(objective.needs_teacher for objective in model.objectives)
    gradients = any(objective.needs_theta for objective in model.objectives)
    return Passes(1 + inner + teacher, 1 + 2 * inner + 2 * gradients)


def count_parts(training: Training) -> Parts:
    """Counts the parts one by one, on the training's batch."""
    model = module_of(training.runner)
    ready = model.data_preprocessor(training.batch, True)
    batch = Batch.read(ready["inputs"], ready["data_samples"], model.modalities)
    states: dict[str, State] = {}

    def stem() -> None:
        states.update(model.encoders.stems(ready["inputs"], batch))

    def forward() -> Tensor:
        pooled = [encoder(states[m]).sum() for m, encoder in model.encoders.items()]
        return torch.stack(pooled).sum()

    trained = [p for p in model.encoders.parameters() if p.requires_grad]
    once, ahead = count_flops(stem), count_flops(forward)
    both = count_flops(lambda: torch.autograd.grad(forward(), trained))
    return Parts(once, ahead, both - ahead)


def floor(passes: Passes, parts: Parts) -> int:
    r"""FLOPs of the encoders that the passes cannot do without.

    .. math:: F_{stem} + n_f F_{forward} + n_b F_{backward}

    Heads, projections and discriminators come on top: they are a method's own, and
    small beside the paper's encoders. The second order of eq. 5 is not in it.
    """
    return (
        parts.stem + passes.forward * parts.forward + passes.backward * parts.backward
    )
