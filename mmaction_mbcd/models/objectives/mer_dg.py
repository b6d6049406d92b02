"""MER-DG: every modality's features keep their entropy; an add-on to any method."""

import math

import torch
from mmaction.registry import MODELS
from torch import Tensor

from ..functional import ZERO_NORM, at_least_float32, full_precision
from ..step import StepOutputs
from .base import Objective


def _centred(features: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows minus their mean (0 where absent), channels' std, number of rows."""
    z = features.double()
    weight = z.new_ones(len(z), 1)  # 1 for present rows, 0 for others
    if present is not None:
        weight = present.to(z).unsqueeze(1)
    count = weight.sum()
    mean = (z * weight).sum(dim=0) / count.clamp(min=1)
    centred = (z - mean) * weight  # (N, d)
    # Unbiased, (N, d) -> (d,)
    std = torch.linalg.vector_norm(centred, dim=0) / (count - 1).clamp(min=1).sqrt()
    return centred, std, count


def spread_shortfall(
    features: Tensor, present: Tensor | None = None, gamma: float = 1.0
) -> Tensor:
    r"""MER-DG's first term: how far channels' deviations fall short of ``gamma``.

    .. math:: \frac{1}{d} \sum_c \max(0, \gamma - \mathrm{std}(z_{\cdot c}))

    The standard deviation over the batch is the unbiased one; the secondary sources
    do not say which. A channel that is constant has no gradient.

    Args:
        features: ``(N, d)``.
        present: ``(N,) bool``.
        gamma: 1 in the method.

    Returns:
        Scalar in ``[0, gamma]``; 0 with fewer than two samples.
    """
    _, std, count = _centred(features, present)
    shortfall = (gamma - std).clamp(min=0).mean()
    # One sample has no deviation; a zero that stays connected.
    shortfall = torch.where(count > 1, shortfall, 0.0 * shortfall)
    return shortfall.to(at_least_float32(features).dtype)


def correlation_log_volume(
    features: Tensor, present: Tensor | None = None, eps: float = 1e-4
) -> Tensor:
    r"""MER-DG's second term: entropy of a Gaussian with the channels' correlations.

    .. math:: \frac{1}{d} \log \det ( \mathrm{corr}(Z) + \epsilon I )

    The method maximises it. With standardised features ``X``, ``(N, d)``, it equals
    ``log eps + logdet(I + X X^T / ((N - 1) eps)) / d`` (Sylvester), which needs an
    ``N x N`` determinant instead of ``d x d``; in float64, since ``1 / eps`` times d
    exceeds float32's precision.

    Args:
        features: ``(N, d)``.
        present: ``(N,) bool``.
        eps: 1e-4 in the method.

    Returns:
        Scalar. A channel that is constant up to rounding correlates with nothing, not
        even itself (a zero on the diagonal), and has no gradient; 0 with fewer than
        two samples.
    """
    centred, std, count = _centred(features, present)
    # In units of the features' own type, although computed in float64.
    rounding = 8 * torch.finfo(at_least_float32(features).dtype).eps
    size = features.detach().double().abs().amax(dim=0)
    varies = std > torch.maximum(rounding * size, torch.full_like(std, ZERO_NORM))
    x = torch.where(varies, centred / torch.where(varies, std, 1.0), 0.0)
    with full_precision(x):
        gram = x @ x.T / ((count - 1).clamp(min=1) * eps)
    # log det of d x d by one of N x N, as above.
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    volume = math.log(eps) + torch.logdet(identity + gram) / features.shape[1]
    volume = torch.where(count > 1, volume, 0.0 * volume)
    return volume.to(at_least_float32(features).dtype)


@MODELS.register_module()
class MaximumEntropyRegularizer(Objective):
    r"""MER-DG's regulariser (ICML 2026, arXiv 2605.01967), beside any method's losses.

    .. math:: \lambda \sum_m \Big[ a_1 \frac{1}{d} \sum_c
              \max(0, \gamma - \mathrm{std}(z_{m,\cdot c}))
              - a_2 \frac{1}{d} \log \det ( \mathrm{corr}(Z_m) + \epsilon I ) \Big]

    (see :func:`spread_shortfall` and :func:`correlation_log_volume`), on the encoders'
    outputs as in the paper. Its public code takes 128-wide projections instead, in one
    script of unit length, where the first term's floor is out of reach
    (docs/methods/mer_dg.md).

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
            spread.append(spread_shortfall(z, outputs.present[m], self.gamma))
            volume.append(correlation_log_volume(z, outputs.present[m], self.eps))
        return {
            "loss_spread": self.spread_weight * torch.stack(spread).sum(),
            "loss_volume": -self.volume_weight * torch.stack(volume).sum(),
        }
