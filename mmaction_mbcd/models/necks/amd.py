"""Adaptive modality dropout (AMD), eqs. 2-4 of MBCD.

Equation numbers are those of "Modality-Balanced Collaborative Distillation for
Multi-Modal Domain Generalization" (MBCD, AAAI 2026).
"""

from collections.abc import Mapping, Sequence

import torch
from mmaction.registry import MODELS
from torch import Tensor

from ..functional import at_least_float32
from .concat import ConcatFusion


def modality_confidence(logits: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Confidence of one modality on a mini-batch, eq. 2.

    .. math:: s^k = \sum_{i \in B} \max(\mathrm{softmax}(f^k(x_i^k)))

    It does not ask whether the prediction is right. The paper calls it an
    indirect signal: no gradient flows through it.

    Args:
        logits: ``(N, C)``, unimodal logits.
        present: ``(N,)`` bool, the samples to sum over; all if None.

    Returns:
        Scalar between ``N / C`` and ``N`` (a sum of probabilities, not a mean).
    """
    # (N, C) -> (N,), the probability of the predicted class
    confidence = at_least_float32(logits.detach()).softmax(dim=1).amax(dim=1)
    return confidence.sum() if present is None else (confidence * present).sum()


def relative_learning_speed(confidences: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""How fast each modality learns compared with the others, eq. 3.

    .. math:: r^k = \frac{1}{M-1} \sum_{j \ne k} \frac{s^k}{s^j}

    Args:
        confidences: ``{modality: s}``, positive scalars; all sums over the same
            number of samples, or all means.

    Returns:
        ``{modality: r}``, positive ratios; 1 when all are equal.

    Raises:
        ValueError: With fewer than two modalities.
    """
    if len(confidences) < 2:
        raise ValueError(
            "the relative learning speed compares modalities and needs at least "
            f"two; got {list(confidences)}"
        )
    return {
        k: torch.stack([s / other for j, other in confidences.items() if j != k]).mean()
        for k, s in confidences.items()
    }


def dropout_probability(speed: Tensor) -> Tensor:
    r"""Probability of dropping a modality from fusion, eq. 4.

    .. math:: p^k = \tanh(\max(r^k - 1, 0))

    The paper's prose defines the drop indicator ``M ~ Bernoulli(p)`` and the mask
    ``D = 1 - M``; its formula, read as one chain, would keep with probability p.
    The prose settles it: a modality is kept with probability ``1 - p``.

    Args:
        speed: ``r``, any shape.

    Returns:
        Probabilities in ``[0, 1)``, of the shape of ``speed``.
    """
    return (speed - 1).clamp(min=0).tanh()


def draw_keep_mask(
    drop_probabilities: Sequence[Tensor], present: Sequence[Tensor], uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Bernoulli drop decisions, conditioned on keeping at least one modality.

    A sample that lost every modality has no information. Redrawing such a sample
    until one modality is kept gives the product of the Bernoullis conditioned on
    "not all dropped"; this draws from that distribution directly, in one pass and
    without waiting for the device. While no modality of the sample has been kept,

    .. math:: P(\text{drop } k) =
              p_k \frac{1 - \prod_{j>k} p_j}{1 - \prod_{j \ge k} p_j}

    and ``p_k`` afterwards. Absent modalities count as dropped (``p = 1``).

    Args:
        drop_probabilities: ``M`` scalars or ``(N,)`` tensors in ``[0, 1]``.
        present: ``M`` bool tensors ``(N,)``; which samples have the modality.
        uniforms: ``(N, M)`` numbers in ``[0, 1)``.

    Returns:
        ``(N, M)`` bool, True where the modality is kept (a sample without any present
        modality keeps none), and the ``(N, M)`` probabilities of that,
        ``(1 - p_k) / (1 - prod p)``.
    """
    # Short of 1, so that a sample whose every present modality is certain to be
    # dropped still keeps one instead of dividing by zero.
    ceiling = 1 - 1e-6
    p = torch.stack(
        [
            torch.where(has, probability.clamp(max=ceiling), 1.0)
            for probability, has in zip(drop_probabilities, present, strict=True)
        ],
        dim=1,
    ).to(uniforms)  # (N, M)
    # tail[:, k] = product of p[:, k:]; one more column of ones closes it.
    tail = p.flip(1).cumprod(1).flip(1)
    tail = torch.cat([tail, torch.ones_like(tail[:, :1])], dim=1)
    # One modality after the other: each decision depends on whether an earlier one
    # was kept.
    none_kept = torch.ones_like(p[:, 0], dtype=torch.bool)
    keep = []
    for k, has in enumerate(present):
        conditional = p[:, k] * (1 - tail[:, k + 1]) / (1 - tail[:, k]).clamp(min=1e-12)
        drop = uniforms[:, k] < torch.where(none_kept, conditional, p[:, k])
        keep.append(~drop & has)
        none_kept = none_kept & ~keep[-1]
    probability = (1 - p) / (1 - tail[:, :1]).clamp(min=1e-12)
    return torch.stack(keep, dim=1), probability


@MODELS.register_module()
class AMDFusion(ConcatFusion):
    """Adaptive modality dropout before concatenation, eqs. 2-4.

    In training, each modality of each sample is zeroed with the probability of
    eq. 4, so that confident modalities are seen less. At least one present
    modality of a sample is kept (see :func:`draw_keep_mask`). In
    evaluation it is :class:`ConcatFusion`.

    Args:
        mode: ``'adaptive'`` (eq. 4), ``'fixed'`` (``p`` for every modality) or
            ``'none'``; the three rows of the paper's Table 5.
        p: Probability of the fixed mode; the paper has 0.5.
        granularity: ``'sample'`` draws for every sample with a shared probability,
            ``'batch'`` once for the mini-batch, as the paper's index ``k`` alone
            would read. Both have the same mean; the former has less variance.
        rescale: Divide what is kept by the probability of keeping it, so that its
            mean stays. The paper and its code do not.
        init_cfg: As in MMEngine.

    Raises:
        ValueError: For a mode, granularity or p that does not exist.
    """

    def __init__(
        self,
        mode: str = "adaptive",
        p: float = 0.5,
        granularity: str = "sample",
        rescale: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        problems = []
        if mode not in ("adaptive", "fixed", "none"):
            problems.append(f"mode must be adaptive, fixed or none; got {mode!r}")
        if granularity not in ("sample", "batch"):
            problems.append(f"granularity must be sample or batch; got {granularity!r}")
        if not 0 <= p < 1:
            problems.append(f"p is a probability in [0, 1); got {p}")
        if problems:
            raise ValueError("AMDFusion: " + "; ".join(problems))
        self.mode, self.p = mode, p
        self.granularity, self.rescale = granularity, rescale

    @property
    def needs_confidence(self) -> bool:
        """Only the adaptive mode compares modalities."""
        return self.mode == "adaptive"

    def drop_probabilities(
        self, modalities: list[str], confidences: Mapping[str, Tensor], like: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Drop probability and relative speed of each modality, both scalars."""
        if self.mode == "fixed":
            return {m: like.new_full((), self.p) for m in modalities}, {}
        none = {m: like.new_zeros(()) for m in modalities}
        # One modality left in the whole batch: nothing to compare, nothing to drop.
        if len(confidences) < 2:
            return none, {m: like.new_ones(()) for m in modalities}
        # A modality that the whole batch lacks stays at probability 0.
        speed = relative_learning_speed(confidences)
        p = {m: dropout_probability(r).to(like) for m, r in speed.items()}
        return none | p, speed

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        confidences: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`ConcatFusion.forward`; also logs each s, r, p and kept share."""
        if not self.training or self.mode == "none":
            return super().forward(features, present)
        modalities = list(features)
        # Probabilities stay in float32 whatever the features' precision.
        like = features[modalities[0]].new_empty((), dtype=torch.float32)
        if features[modalities[0]].dtype == torch.float64:
            like = like.double()
        p, speed = self.drop_probabilities(modalities, confidences or {}, like)
        count = len(features[modalities[0]])
        rows = count if self.granularity == "sample" else 1
        uniforms = torch.rand(
            rows, len(modalities), dtype=like.dtype, device=like.device
        )
        keep, probability = draw_keep_mask(
            [p[m] for m in modalities],
            [present[m] for m in modalities],
            uniforms.expand(count, -1),  # (1, M) of one draw per batch -> (N, M)
        )
        masked, logs = {}, {}
        for column, m in enumerate(modalities):
            mask = keep[:, column]
            masked[m] = features[m] * mask.unsqueeze(1).to(features[m].dtype)
            if self.rescale:
                # In the probabilities' precision: 1 - p may be tiny.
                factor = (mask / probability[:, column].clamp(min=1e-6)).unsqueeze(1)
                masked[m] = (features[m] * factor).to(features[m].dtype)
            if confidences and m in confidences:
                logs[f"s/{m}"] = confidences[m]
            if m in speed:
                logs[f"r/{m}"] = speed[m]
            logs[f"drop_prob/{m}"] = p[m]
            logs[f"kept/{m}"] = mask.float().mean()
        fused, _ = super().forward(masked, present)
        return fused, logs
