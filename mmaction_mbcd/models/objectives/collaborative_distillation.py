"""Distillation from the fused teacher into every head of the student."""

from mmaction.registry import MODELS
from torch import Tensor

from .. import functional
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class CollaborativeDistillation(Objective):
    r""":math:`\lambda L_{dis}` of MBCD's eqs. 8 and 9.

    The fused term compares with the fused logits at theta', the unimodal terms
    with the unimodal logits at theta.

    Args:
        weight: ``lambda``; 1 in the paper's implementation details.
        temperature: The paper has none, that is 1.
    """

    needs_teacher = True
    needs_unimodal = True

    def __init__(self, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive; got {temperature}")
        self.weight, self.temperature = weight, temperature

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_distill``."""
        loss = functional.collaborative_distillation(
            outputs.teacher.fused_logits,
            outputs.fused_logits,
            outputs.unimodal_logits,
            self.temperature,
            outputs.present,
            outputs.valid,
        )
        return {"loss_distill": self.weight * loss}
