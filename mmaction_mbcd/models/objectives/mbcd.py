"""MBCD: the fused teacher is distilled into every head of the student, eq. 8.

Eqs. 2-4 are in ``necks/amd.py``, eq. 5 in ``recognizer.py`` and the optimizer wrapper,
eq. 7 is the teacher's hook; the cross-entropies of eq. 9 are those of ``erm.py``.
"""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor

from ..functional import masked_kl_divergence
from ..step import StepOutputs
from .base import Objective


def collaborative_distillation(
    teacher_logits: Tensor,
    fused_logits: Tensor,
    unimodal_logits: Mapping[str, Tensor],
    temperature: float = 1.0,
    present: Mapping[str, Tensor] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Collaborative distillation, eq. 8.

    .. math:: L_{dis} = D_{KL}(p^{EMA} \| p^{mm}) + \sum_m D_{KL}(p^{EMA} \| p^m)

    Args:
        teacher_logits: ``(N, C)``, fused logits of the teacher; no gradient
            reaches it.
        fused_logits: ``(N, C)``, fused logits of the student.
        unimodal_logits: ``{modality: (N, C)}`` of the student.
        temperature: The paper has none, that is 1.
        present: ``{modality: (N,) bool}``; all present if None.
        valid: ``(N,) bool``, the samples of the fused term; all if None.

    Returns:
        Scalar in nats.
    """
    # The same target for all heads: the unimodal ones learn from fused knowledge.
    terms = [masked_kl_divergence(teacher_logits, fused_logits, valid, temperature)]
    for modality, logits in unimodal_logits.items():
        has = None if present is None else present[modality]
        terms.append(masked_kl_divergence(teacher_logits, logits, has, temperature))
    return torch.stack(terms).sum()


@MODELS.register_module()
class CollaborativeDistillation(Objective):
    r""":math:`\lambda L_{dis}` of MBCD's eqs. 8 and 9.

    The fused term compares with the fused logits at theta', the unimodal terms
    with the unimodal logits at theta. See :func:`collaborative_distillation`.

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
        loss = collaborative_distillation(
            outputs.teacher.fused_logits,
            outputs.fused_logits,
            outputs.unimodal_logits,
            self.temperature,
            outputs.present,
            outputs.valid,
        )
        return {"loss_distill": self.weight * loss}
