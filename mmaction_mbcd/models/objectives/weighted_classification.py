"""Classification whose unimodal terms have weights of their own."""

from collections.abc import Mapping

from mmaction.registry import MODELS
from torch import Tensor

from .. import functional
from ..step import StepOutputs
from .base import Objective


def cross_entropies(outputs: StepOutputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the fused logits and of each modality's, means over who has them.

    Returns:
        Scalar, and ``{modality: scalar}``, in nats.
    """
    fused = functional.masked_cross_entropy(
        functional.at_least_float32(outputs.fused_logits),
        outputs.labels,
        outputs.valid,
    )
    unimodal = {
        m: functional.masked_cross_entropy(
            functional.at_least_float32(logits), outputs.labels, outputs.present[m]
        )
        for m, logits in outputs.unimodal_logits.items()
    }
    return fused, unimodal


def weighted_terms(
    outputs: StepOutputs, fused_weight: Tensor | float, weights: Mapping
) -> dict[str, Tensor]:
    """``loss_fused`` and ``loss_<modality>``, a weighted cross-entropy each.

    Args:
        outputs: Of the step.
        fused_weight: Scalar.
        weights: ``{modality: scalar}``.
    """
    fused, unimodal = cross_entropies(outputs)
    return {"loss_fused": fused_weight * fused} | {
        f"loss_{m}": weights[m] * ce for m, ce in unimodal.items()
    }


@MODELS.register_module()
class WeightedClassification(Objective):
    r"""Cross-entropies with one weight per modality (CMRF, Fan et al., NeurIPS 2024).

    .. math:: \mathrm{CE}(g(z), y) + \alpha \sum_m w_m \mathrm{CE}(h_m(z_m), y)

    Args:
        unimodal_weight: ``alpha``; CMRF's upstream has 2.0.
        modality_weights: ``{modality: w}``, 1 for those it does not name; names that
            the model does not use are ignored. CMRF's upstream has 1/2 for audio.
    """

    needs_unimodal = True

    def __init__(
        self,
        unimodal_weight: float = 2.0,
        modality_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.unimodal_weight = unimodal_weight
        self.modality_weights = dict(modality_weights or {})

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused`` and ``loss_<modality>``."""
        weights = {
            m: self.unimodal_weight * self.modality_weights.get(m, 1.0)
            for m in outputs.unimodal_logits
        }
        return weighted_terms(outputs, 1.0, weights)
