"""RNA-Net: the modalities' mean feature norms are pulled together."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class NormAlignmentLoss(Objective):
    r"""Relative norm alignment of RNA-Net (Planamente et al., WACV 2022).

    .. math:: \lambda \frac{2}{M (M-1)} \sum_{(p,q)}
              \left( \frac{\bar n_p}{\bar n_q} - 1 \right)^2

    over all pairs (see :func:`.mmdg_functional.norm_alignment`). The norms are taken
    before LayerNorm, if the model has one: after it they are all the same.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``lambda``; 1 in the published code.
        denominator: The modality by whose norm others are divided; the other pairs
            follow the declared order. With ``'audio'`` the pairs of video, audio and
            flow are (v, a), (v, f), (f, a), those of the published code. None: p
            before q in declared order throughout.

    Raises:
        ValueError: With fewer than two modalities.
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 1.0,
        denominator: str | None = "audio",
    ) -> None:
        super().__init__()
        pairs = formulas.modality_pairs(channels, "NormAlignmentLoss")
        self.pairs = formulas.directed_pairs(pairs, denominator)
        self.weight = weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_norm``; logs the mean norm of each modality."""
        z, present = outputs.raw_features, outputs.present
        terms = [
            formulas.norm_alignment(z[p], z[q], formulas.both(present[p], present[q]))
            for p, q in self.pairs
        ]
        logs = {
            f"norm/{m}": formulas.masked_mean(
                formulas.row_norms(own.detach()), present[m]
            )
            for m, own in z.items()
        }
        return {"loss_norm": self.weight * torch.stack(terms).mean()} | logs
