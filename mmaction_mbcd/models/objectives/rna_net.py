"""RNA-Net: the modalities' mean feature norms are pulled together."""

from collections.abc import Mapping, Sequence

import torch
from mmaction.registry import MODELS
from torch import Tensor

from ..functional import ZERO_NORM, both, masked_mean, modality_pairs, row_norms
from ..step import StepOutputs
from .base import Objective


def directed_pairs(
    pairs: Sequence[tuple[str, str]], denominator: str | None = "audio"
) -> list[tuple[str, str]]:
    """The pairs ``(p, q)`` of RNA-Net's ratio ``n_p / n_q``, which is not symmetric.

    In declared order, p before q, but ``denominator`` is always q: with video, audio
    and flow (v, a), (v, f) and (f, a), as in the published code.

    Args:
        pairs: Unordered pairs, in declared order.
        denominator: A modality, which need not be among them, or None to keep the
            declared order.
    """
    return [(q, p) if p == denominator else (p, q) for p, q in pairs]


def norm_alignment(p: Tensor, q: Tensor, present: Tensor | None = None) -> Tensor:
    r"""RNA-Net's relative norm alignment of one pair (Planamente et al., WACV 2022).

    .. math:: \left( \frac{\bar n_p}{\bar n_q} - 1 \right)^2, \qquad
              \bar n_m = \frac{1}{N} \sum_i \|z_{m,i}\|_2

    over the batch, not per class or domain. Nothing is detached: both norms move.

    Args:
        p: ``(N, d_p)``, features of the numerator.
        q: ``(N, d_q)``, of the denominator.
        present: ``(N,) bool``, samples that have both.

    Returns:
        Scalar, not negative; 0 if no sample has both or ``n_q`` is not above 1e-12,
        where the ratio does not exist.
    """
    # (N, d) -> (N,) norms -> their mean over the batch
    numerator = masked_mean(row_norms(p), present)
    denominator = masked_mean(row_norms(q), present)
    exists = denominator > ZERO_NORM
    ratio = numerator / torch.where(exists, denominator, 1.0)
    # Not a constant 0: DistributedDataParallel waits for gradients of both.
    return torch.where(exists, (ratio - 1) ** 2, 0.0 * ratio)


@MODELS.register_module()
class NormAlignmentLoss(Objective):
    r"""Relative norm alignment of RNA-Net (Planamente et al., WACV 2022).

    .. math:: \lambda \frac{2}{M (M-1)} \sum_{(p,q)}
              \left( \frac{\bar n_p}{\bar n_q} - 1 \right)^2

    over all pairs (see :func:`norm_alignment`). The norms are taken before LayerNorm,
    if the model has one: after it they are all the same.

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
        pairs = modality_pairs(channels, "NormAlignmentLoss")
        self.pairs = directed_pairs(pairs, denominator)
        self.weight = weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_norm``; logs the mean norm of each modality."""
        # LayerNorm would have made all norms equal.
        z, present = outputs.raw_features, outputs.present
        terms = [
            norm_alignment(z[p], z[q], both(present[p], present[q]))
            for p, q in self.pairs
        ]
        logs = {
            f"norm/{m}": masked_mean(row_norms(own.detach()), present[m])
            for m, own in z.items()
        }
        return {"loss_norm": self.weight * torch.stack(terms).mean()} | logs
