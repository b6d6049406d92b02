"""SimMMDG and MOOSA: a feature's shared and specific halves move apart."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class FeatureSplitLoss(Objective):
    r"""Distance of the two halves of each feature, SimMMDG (NeurIPS 2023).

    .. math:: - \alpha \frac{1}{M} \sum_m \mathrm{MSE}(z_m^{shared}, z_m^{specific})

    (see :func:`.mmdg_functional.half_distance`). It has no lower bound.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``alpha``; 0.7 in the published code, for SimMMDG and for MOOSA.

    Raises:
        ValueError: If a modality's ``d`` is odd: its halves cannot be compared.
    """

    filled_in = ("channels",)

    def __init__(self, channels: Mapping[str, int], weight: float = 0.7) -> None:
        super().__init__()
        if odd := {m: d for m, d in channels.items() if d % 2}:
            raise ValueError(
                "FeatureSplitLoss compares the halves of a feature and needs an even "
                f"number of channels; got {odd}"
            )
        self.weight = weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_split``, not positive."""
        terms = [
            formulas.half_distance(z, outputs.present[m])
            for m, z in outputs.features.items()
        ]
        return {"loss_split": -self.weight * torch.stack(terms).mean()}
