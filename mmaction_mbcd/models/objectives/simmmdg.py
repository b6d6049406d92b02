"""SimMMDG: a part of each feature is shared by the modalities, the rest is not.

Its three losses are also MOOSA's. Two of its formulas are shared by more methods:
:func:`.functional.supervised_contrastive` and :func:`.functional.unit_distance`.
"""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from ..functional import (
    at_least_float32,
    both,
    halves,
    masked_mean,
    modality_pairs,
    shared_channels,
    shared_halves,
    supervised_contrastive,
    unit_distance,
)
from ..layers import ModalityProjectors
from ..step import StepOutputs
from .base import Objective


def half_distance(features: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Mean squared difference of a feature's two halves, which SimMMDG maximises.

    .. math:: \frac{1}{N} \sum_i \frac{2}{d} \sum_{c \le d/2}
              (z_{i,c} - z_{i,c+d/2})^2

    Its negative, the loss, has no lower bound.

    Args:
        features: ``(N, d)`` with even ``d``.
        present: ``(N,) bool``.

    Returns:
        Scalar, not negative.
    """
    shared, specific = halves(at_least_float32(features))
    # (N, d / 2) -> (N,)
    return masked_mean(((shared - specific) ** 2).mean(dim=1), present)


class Translator(BaseModule):
    """``Linear - ReLU - Linear - ReLU - Dropout - Linear``, modality to modality.

    Of SimMMDG's published code. Without BatchNorm it can run on any rows.

    Args:
        in_channels: ``d`` of the source.
        out_channels: ``d`` of the target.
        hidden_channels: Width of both hidden layers.
        dropout: Probability of dropping a unit of the second.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 2048,
        dropout: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, hidden_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(N, d_source)`` -> ``(N, d_target)``."""
        return self.layers(features)


@MODELS.register_module()
class SupervisedContrastiveLoss(Objective):
    r"""SupCon on the projected shared halves, SimMMDG (Dong et al., NeurIPS 2023).

    .. math:: \alpha \, \mathrm{SupCon}(P_m(z_m^{shared}), y)

    (see :func:`.functional.supervised_contrastive`), with one head ``P`` per modality.
    Anchors are the present (sample, modality).

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``alpha``; 3.0 in the published code, for SimMMDG and for MOOSA.
        temperature: ``tau``; 0.1 there.
        base_temperature: 0.07 there; ``tau / 0.07`` multiplies the loss.
        hidden_channels: Of the heads; 2048 there.
        out_channels: Of the heads; 128 there.
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 3.0,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        hidden_channels: int = 2048,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.temperatures = (temperature, base_temperature)
        self.projectors = ModalityProjectors(
            shared_channels(channels), hidden_channels, out_channels
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_contrast``."""
        # A modality on a single row has no embeddings and is not an anchor.
        embeddings, usable = self.projectors(
            shared_halves(outputs.features), outputs.present, outputs.rows
        )
        loss = supervised_contrastive(
            embeddings, outputs.labels, usable, *self.temperatures
        )
        return {"loss_contrast": self.weight * loss}


@MODELS.register_module()
class FeatureSplitLoss(Objective):
    r"""Distance of the two halves of each feature, SimMMDG (NeurIPS 2023).

    .. math:: - \alpha \frac{1}{M} \sum_m \mathrm{MSE}(z_m^{shared}, z_m^{specific})

    (see :func:`half_distance`). It has no lower bound.

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
            half_distance(z, outputs.present[m]) for m, z in outputs.features.items()
        ]
        # Negative: the distance is to grow.
        return {"loss_split": -self.weight * torch.stack(terms).mean()}


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
        modality_pairs(channels, "TranslationLoss")  # for its check alone
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
            # Drawn only where it is used: a draw would shift all later ones.
            if self.mask_ratio > 0 and self.training:
                source = source * (torch.rand_like(source) >= self.mask_ratio)
            for t, translator in translators.items():
                terms.append(
                    unit_distance(
                        translator(source),
                        outputs.features[t],
                        both(outputs.present[s], outputs.present[t]),
                    )
                )
        return {"loss_translation": self.weight * torch.stack(terms).mean()}
