"""MER-DG: every modality's features keep their entropy; an add-on to any method."""

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class MaximumEntropyRegularizer(Objective):
    r"""MER-DG's regulariser (ICML 2026, arXiv 2605.01967), beside any method's losses.

    .. math:: \lambda \sum_m \Big[ a_1 \frac{1}{d} \sum_c
              \max(0, \gamma - \mathrm{std}(z_{m,\cdot c}))
              - a_2 \frac{1}{d} \log \det ( \mathrm{corr}(Z_m) + \epsilon I ) \Big]

    (see :func:`.mmdg_functional.spread_shortfall` and
    :func:`.mmdg_functional.correlation_log_volume`), on the encoders' outputs as in
    the paper. Its public code takes 128-wide projections instead, in one script of
    unit length, where the first term's floor is out of reach (docs/methods.md).

    Args:
        weight: ``lambda``; 3 in the paper.
        spread_weight: ``a_1``; 1 in the paper.
        volume_weight: ``a_2``; 1 in the paper.
        gamma: Standard deviation that is enough; 1 in the paper.
        eps: Added to the correlations' diagonal; 1e-4 in the paper.
    """

    def __init__(
        self,
        weight: float = 3.0,
        spread_weight: float = 1.0,
        volume_weight: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        if eps <= 0:
            raise ValueError(f"eps must be positive, or log det is infinite; got {eps}")
        self.spread_weight = weight * spread_weight
        self.volume_weight = weight * volume_weight
        self.gamma, self.eps = gamma, eps

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_spread`` and ``loss_volume``."""
        spread, volume = [], []
        for m, z in outputs.features.items():
            spread.append(formulas.spread_shortfall(z, outputs.present[m], self.gamma))
            volume.append(
                formulas.correlation_log_volume(z, outputs.present[m], self.eps)
            )
        return {
            "loss_spread": self.spread_weight * torch.stack(spread).sum(),
            "loss_volume": -self.volume_weight * torch.stack(volume).sum(),
        }
