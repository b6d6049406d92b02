"""MOOSA: certain predictions count more, and all are made more certain."""

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..step import StepOutputs
from .base import Objective
from .weighted_classification import weighted_terms


@MODELS.register_module()
class EntropyWeightedClassification(Objective):
    r"""MOOSA's classification and entropy minimisation (Dong et al., ECCV 2024).

    .. math:: \sum_s \Big( \frac{1}{N} \sum_i w_s(i) \Big) \mathrm{CE}_s
              + \frac{\beta}{M+1} \sum_s \bar H_s

    over the modalities' and the fused logits ``s``, with the weights of
    :func:`.mmdg_functional.entropy_weights` and the entropies of
    :func:`.mmdg_functional.smoothed_entropy`. As in the published code, the weights
    are per sample but multiply the batch's mean cross-entropy. It takes the place of
    ``ClassificationObjective``. The prediction is the fused head's alone.

    Args:
        temperature: ``T`` of the weights; 1 in the published code.
        entropy_weight: ``beta``; 1e-3 there. Upstream varies it from 1e-3 to 1 with
            the target.
    """

    needs_unimodal = True

    def __init__(self, temperature: float = 1.0, entropy_weight: float = 1e-3) -> None:
        super().__init__()
        self.temperature, self.entropy_weight = temperature, entropy_weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused``, ``loss_<modality>`` (w CE each) and ``loss_entropy``."""
        logits = {"": outputs.fused_logits} | outputs.unimodal_logits
        present = {"": outputs.valid} | outputs.present
        weights = {
            s: formulas.masked_mean(w, outputs.valid)
            for s, w in formulas.entropy_weights(
                logits, present, self.temperature
            ).items()
        }
        entropies = [
            formulas.smoothed_entropy(own, present[s]) for s, own in logits.items()
        ]
        losses = weighted_terms(outputs, weights[""], weights)
        losses["loss_entropy"] = self.entropy_weight * torch.stack(entropies).mean()
        return losses | {
            f"weight/{s or 'fused'}": w.detach() for s, w in weights.items()
        }
