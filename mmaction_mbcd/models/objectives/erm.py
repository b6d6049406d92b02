"""ERM: the cross-entropies that every method starts from."""

from mmaction.registry import MODELS
from torch import Tensor

from ..functional import masked_cross_entropy
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class ClassificationObjective(Objective):
    r"""Cross-entropies, the first two terms of MBCD's eq. 9.

    .. math:: L_{cls}(\theta', \phi_{mm}; x) + \sum_k L_{cls}(\theta_k, \phi_k; x_k)

    Without unimodal heads it is plain ERM. The unimodal losses of probes, which
    watch detached features, are named ``loss_probe_<modality>`` and always have
    weight 1: they move nothing but the probe.

    Args:
        weight: Of the fused term.
        unimodal_weight: Of each unimodal term.
    """

    def __init__(self, weight: float = 1.0, unimodal_weight: float = 1.0) -> None:
        super().__init__()
        self.weight, self.unimodal_weight = weight, unimodal_weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused`` and one loss per unimodal head."""
        fused = masked_cross_entropy(
            outputs.fused_logits, outputs.labels, outputs.valid
        )
        losses = {"loss_fused": self.weight * fused}
        # The recognizer has taken them: the inner step follows the same losses.
        for modality, ce in outputs.unimodal_ce.items():
            if outputs.probe:
                losses[f"loss_probe_{modality}"] = ce
            else:
                losses[f"loss_{modality}"] = self.unimodal_weight * ce
        return losses
