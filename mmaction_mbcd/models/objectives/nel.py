"""NEL: two views of each clip agree, and embeddings fill their space."""

import math
from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor

from ..functional import (
    at_least_float32,
    both,
    full_precision,
    masked_cross_entropy,
    shared_channels,
    shared_halves,
    supervised_contrastive,
    unit_rows,
)
from ..layers import ModalityProjectors
from ..step import StepOutputs
from .base import Objective


def mean_shift(
    embeddings: Tensor, present: Tensor | None = None, neighbours: int = 8
) -> Tensor:
    r"""NEL's step of each embedding towards its neighbours in the batch.

    .. math:: m_i = u \Big( \tfrac{1}{2} e_i
              + \tfrac{1}{2k} \sum_{j \in kNN(i)} e_j \Big)

    Args:
        embeddings: ``(N, d)`` of norm 1, both views of every clip.
        present: ``(N,) bool``; others are nobody's neighbours.
        neighbours: ``k``, by cosine and without ``i`` itself; fewer if there are
            fewer, none leave the embedding where it is. 8 in the published code.

    Returns:
        ``(N, d)`` of norm 1. The choice of neighbours has no gradient, they have.
    """
    e = at_least_float32(embeddings)
    count = len(e)
    allowed = ~torch.eye(count, dtype=torch.bool, device=e.device)
    if present is not None:
        allowed = allowed & present
    with full_precision(e), torch.no_grad():
        similarity = (e @ e.T).masked_fill(~allowed, -math.inf)
    nearest = similarity.topk(min(neighbours, count - 1), dim=1)
    found = nearest.values > -math.inf  # (N, k)
    summed = (e[nearest.indices] * found.unsqueeze(2)).sum(dim=1)  # (N, k, d) -> (N, d)
    mean = summed / found.sum(dim=1, keepdim=True).clamp(min=1)
    return unit_rows(0.5 * e + 0.5 * mean)


def view_contrast(
    first: Tensor,
    second: Tensor,
    present: Tensor | None = None,
    temperature: float = 0.25,
) -> Tensor:
    r"""NEL's ``L_UNC``: which of the second views belongs to a first view?

    .. math:: \mathrm{CE} ( u(M^1) u(M^2)^T / \tau, \mathrm{identity} )

    From the first views to the second only, as in the published code.

    Args:
        first: ``(B, d)``, mean-shifted embeddings of all modalities side by side.
        second: ``(B, d)``, of the other views in the same order.
        present: ``(B,) bool``, clips with embeddings in both views; the others are
            neither asked nor offered.
        temperature: ``tau``; 0.25 in the published code.

    Returns:
        Scalar in nats.
    """
    first, second = unit_rows(first), unit_rows(second)
    with full_precision(first):
        logits = first @ second.T / temperature
    if present is not None:
        # Whole rows as well, so that the unused cross-entropies stay finite.
        # A clip without both views is hidden as a query and as an answer.
        hidden = ~(present.unsqueeze(1) & present)
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    # The right answer to clip i is view i.
    own = torch.arange(len(first), device=first.device)
    return masked_cross_entropy(logits, own, present)


def negative_spectral_entropy(
    features: Tensor,
    present: Tensor | None = None,
    cutoff: float = 1e-6,
    eps: float = 1e-10,
) -> Tensor:
    r"""NEL's ``L_NEE``: how few directions the features of a batch occupy.

    .. math:: \sum_i \lambda_i \log(\lambda_i + \epsilon)

    with the eigenvalues of ``Z^T Z / N`` (not centred) above ``cutoff``, divided by
    their sum. The published code decomposes this ``d x d`` matrix in every step; the
    ``N x N`` matrix ``Z Z^T / N`` has the same non-zero eigenvalues, so value and
    gradient are the same. In float64: the cut-off lies below float32's rounding of
    the largest eigenvalue, which would admit noise. Features' norms do not matter,
    but for the cut-off.

    Args:
        features: ``(N, d)``, all modalities side by side, before any projection.
        present: ``(N,) bool``.
        cutoff: 1e-6 in the published code.
        eps: 1e-10 in the published code.

    Returns:
        Scalar between ``-log N`` and 0; 0 if no eigenvalue is above ``cutoff``.
    """
    z, count = features.double(), len(features)
    if present is not None:
        z, count = z * present.unsqueeze(1), present.sum().clamp(min=1)
    with full_precision(z):
        values = torch.linalg.eigvalsh(z @ z.T / count)
    # To zero, not removed: the number kept is known on the device alone.
    values = torch.where(values > cutoff, values, 0.0)
    total = values.sum()
    share = values / torch.where(total > 0, total, 1.0)
    return (share * (share + eps).log()).sum().to(at_least_float32(features).dtype)


@MODELS.register_module()
class NonpolarizedEmbedding(Objective):
    r"""NEL's three regularisers (Neurocomputing 658, 2025, 131754).

    .. math:: w ( \gamma L_{UNC} + \alpha L_C + \beta L_{NEE} )

    UNC contrasts the two views' mean-shifted embeddings (:func:`mean_shift`,
    :func:`view_contrast`), C is SupCon over both views, NEE the negative spectral
    entropy of the fused features (:func:`negative_spectral_entropy`). The first two
    share one projection head per modality on its shared half. The embedding of a
    missing modality is a zero slot beside the others. The data set must return two
    views of each clip.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``w``; 1/2 in the published code, which has it before the
            classification too: give ``ClassificationObjective`` ``weight=0.5``.
        unc_weight: ``gamma``; 0.7 there.
        contrast_weight: ``alpha``; 0.3 there.
        nee_weight: ``beta``; there ``1 / batch size``, with 16 clips per batch.
        neighbours: Of the mean shift; 8 there.
        unc_temperature: 0.25 there.
        temperature: Of SupCon; 0.1 there.
        base_temperature: 0.07 there; ``tau / 0.07`` multiplies SupCon.
        hidden_channels: Of the heads; 2048 there.
        out_channels: Of the heads; 128 there.
    """

    filled_in = ("channels",)
    needs_views = 2

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 0.5,
        unc_weight: float = 0.7,
        contrast_weight: float = 0.3,
        nee_weight: float = 1 / 16,
        neighbours: int = 8,
        unc_temperature: float = 0.25,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        hidden_channels: int = 2048,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        self.weights = {
            "unc": weight * unc_weight,
            "contrast": weight * contrast_weight,
            "nee": weight * nee_weight,
        }
        self.neighbours, self.unc_temperature = neighbours, unc_temperature
        self.temperatures = (temperature, base_temperature)
        self.projectors = ModalityProjectors(
            shared_channels(channels), hidden_channels, out_channels
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_unc``, ``loss_contrast`` and ``loss_nee``.

        Raises:
            ValueError: If the batch does not hold two views of each clip.
        """
        if outputs.views != self.needs_views:
            raise ValueError(
                "NonpolarizedEmbedding compares two views of each clip, and the batch "
                f"has {outputs.views}: set train_dataloader.dataset.views=2 and "
                "train_dataloader.collate_fn=dict(type='collate_views')"
            )
        embeddings, usable = self.projectors(
            shared_halves(outputs.features), outputs.present, outputs.rows
        )
        shifted = {
            m: mean_shift(e, usable[m], self.neighbours) * usable[m].unsqueeze(1)
            for m, e in embeddings.items()
        }
        # Modalities side by side, (2 B, M k), and the two views apart, (B, M k) each.
        first, second = torch.cat(list(shifted.values()), dim=1).chunk(2)
        # (M, 2 B) -> (2 B,): which rows have an embedding of any modality
        embedded = torch.stack(list(usable.values())).any(dim=0)
        losses = dict(
            unc=view_contrast(
                first, second, both(*embedded.chunk(2)), self.unc_temperature
            ),
            contrast=supervised_contrastive(
                embeddings, outputs.labels, usable, *self.temperatures
            ),
            nee=negative_spectral_entropy(outputs.fused_features, outputs.valid),
        )
        return {f"loss_{name}": self.weights[name] * x for name, x in losses.items()}
