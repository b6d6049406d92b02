"""SimMMDG and MOOSA: every modality is translated into every other."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from mmengine.model import ModuleDict
from torch import Tensor

from .. import mmdg_functional as formulas
from ..layers import Translator
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class TranslationLoss(Objective):
    r"""Cross-modal translation of SimMMDG, masked for MOOSA.

    .. math:: \alpha \frac{1}{M (M-1)} \sum_{s \ne t} \frac{1}{N} \sum_i
              \| u(T_{s \to t}(\mu_s \odot z_{s,i})) - u(z_{t,i}) \|_2

    Targets are neither masked nor detached. The mask ``mu`` is drawn once per
    modality and step, for all its translations; what is kept is not rescaled.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``alpha``; 0.1 in the published code (SimMMDG, NeurIPS 2023, and MOOSA,
            ECCV 2024). SimMMDG's upstream changes it per target.
        mask_ratio: Probability of zeroing an entry of the source: 0 for SimMMDG; 0.3
            for MOOSA in the published code, whose upstream has 0.7 where video is one
            of two modalities.
        hidden_channels: Of the translators; 2048 in the published code.
        dropout: Of the translators; 0.5 in the published code.

    Raises:
        ValueError: With fewer than two modalities, or a ratio outside [0, 1).
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 0.1,
        mask_ratio: float = 0.0,
        hidden_channels: int = 2048,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        formulas.modality_pairs(channels, "TranslationLoss")
        if not 0 <= mask_ratio < 1:
            raise ValueError(
                "mask_ratio is the probability of zeroing an entry and lies in [0, 1); "
                f"got {mask_ratio}"
            )
        self.weight, self.mask_ratio = weight, mask_ratio
        self.translators = ModuleDict(
            {
                s: ModuleDict(
                    {
                        t: Translator(d, channels[t], hidden_channels, dropout)
                        for t in channels
                        if t != s
                    }
                )
                for s, d in channels.items()
            }
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_translation``."""
        terms = []
        for s, translators in self.translators.items():
            source = outputs.features[s]
            if self.mask_ratio > 0 and self.training:
                source = source * (torch.rand_like(source) >= self.mask_ratio)
            for t, translator in translators.items():
                terms.append(
                    formulas.unit_distance(
                        translator(source),
                        outputs.features[t],
                        formulas.both(outputs.present[s], outputs.present[t]),
                    )
                )
        return {"loss_translation": self.weight * torch.stack(terms).mean()}
