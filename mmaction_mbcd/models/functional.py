"""The formulas of MBCD as pure functions, one equation each.

Equation numbers are those of "Modality-Balanced Collaborative Distillation for
Multi-Modal Domain Generalization" (MBCD, AAAI 2026). ``N`` is the number of
samples, ``C`` of classes, ``M`` of modalities. Quantities of one modality are
passed as ``{modality: value}`` in the declared order of the modalities.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities; float64 is kept."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def masked_mean(values: Tensor, present: Tensor | None = None) -> Tensor:
    """Mean of ``(N,)`` values over the rows in ``present``, all if None; 0 if none."""
    if present is None:
        return values.mean()
    return (values * present).sum() / present.sum().clamp(min=1)


def masked_cross_entropy(
    logits: Tensor, labels: Tensor, present: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the samples that have the modality.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, class indices.
        present: ``(N,)`` bool, or None for all. The paper has no missing
            modalities; a mean over the present samples equals its loss when all
            are present and keeps one sample's weight independent of the others'.

    Returns:
        Scalar; zero, still connected to ``logits``, when no sample is present.
    """
    if present is None:
        return F.cross_entropy(logits, labels)
    return masked_mean(F.cross_entropy(logits, labels, reduction="none"), present)


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
    ).to(uniforms)
    # tail[:, k] = product of p[:, k:]; one more column of ones closes it.
    tail = p.flip(1).cumprod(1).flip(1)
    tail = torch.cat([tail, torch.ones_like(tail[:, :1])], dim=1)
    none_kept = torch.ones_like(p[:, 0], dtype=torch.bool)
    keep = []
    for k, has in enumerate(present):
        conditional = p[:, k] * (1 - tail[:, k + 1]) / (1 - tail[:, k]).clamp(min=1e-12)
        drop = uniforms[:, k] < torch.where(none_kept, conditional, p[:, k])
        keep.append(~drop & has)
        none_kept = none_kept & ~keep[-1]
    probability = (1 - p) / (1 - tail[:, :1]).clamp(min=1e-12)
    return torch.stack(keep, dim=1), probability


def masked_kl_divergence(
    teacher_logits: Tensor,
    logits: Tensor,
    present: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""``D_KL(teacher || student)``, mean over the present samples.

    .. math:: \frac{1}{N} \sum_i \sum_c p_{ic} (\log p_{ic} - \log q_{ic})

    with ``p = softmax(teacher / T)`` (no gradient) and ``q = softmax(student / T)``,
    times ``T^2`` as usual in distillation, so that the gradient keeps its size.

    Args:
        teacher_logits: ``(N, C)``.
        logits: ``(N, C)``.
        present: ``(N,)`` bool, or None for all.
        temperature: ``T``; the paper has 1.

    Returns:
        Scalar in nats, not negative.
    """
    teacher_logits = at_least_float32(teacher_logits.detach())
    target = (teacher_logits / temperature).log_softmax(dim=1)
    own = (at_least_float32(logits) / temperature).log_softmax(dim=1)
    divergence = F.kl_div(own, target, reduction="none", log_target=True).sum(dim=1)
    return masked_mean(divergence, present) * temperature**2


def collaborative_distillation(
    teacher_logits: Tensor,
    fused_logits: Tensor,
    unimodal_logits: Mapping[str, Tensor],
    temperature: float = 1.0,
    present: Mapping[str, Tensor] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    r"""Collaborative distillation, eq. 8.

    .. math:: L_{dis} = D_{KL}(p^{EMA} \| p^{mm}) + \sum_m D_{KL}(p^{EMA} \| p^m)

    Args:
        teacher_logits: ``(N, C)``, fused logits of the teacher; detached here.
        fused_logits: ``(N, C)``, fused logits of the student.
        unimodal_logits: ``{modality: (N, C)}`` of the student.
        temperature: The paper has none, that is 1.
        present: ``{modality: (N,) bool}``; all present if None.
        valid: ``(N,) bool``, the samples of the fused term; all if None.

    Returns:
        Scalar in nats.
    """
    terms = [masked_kl_divergence(teacher_logits, fused_logits, valid, temperature)]
    for modality, logits in unimodal_logits.items():
        has = None if present is None else present[modality]
        terms.append(masked_kl_divergence(teacher_logits, logits, has, temperature))
    return torch.stack(terms).sum()


def domain_shift_with_uncertainty(
    x: Tensor, noise_mean: Tensor, noise_std: Tensor, eps: float = 1e-6
) -> Tensor:
    r"""Domain shifts with uncertainty (DSU): feature statistics get Gaussian noise.

    .. math:: \frac{x - \mu}{\sigma} (\sigma + \epsilon_\sigma S(\sigma))
              + \mu + \epsilon_\mu S(\mu)

    with mean and standard deviation over space and time, and ``S`` their standard
    deviation over the batch (Li et al., ICLR 2022). MBCD's published code applies
    it in the first pass without naming it in the paper.

    Args:
        x: ``(N, C, ...)`` with at least one further dimension.
        noise_mean: ``(N, C)`` standard normal numbers, ``epsilon_mu``.
        noise_std: ``(N, C)`` standard normal numbers, ``epsilon_sigma``.
        eps: Added to each variance.

    Returns:
        Of the shape of ``x``.
    """
    flat = x.flatten(2)
    mean = flat.mean(dim=2)
    std = (flat.var(dim=2) + eps).sqrt()
    spread_mean = (mean.var(dim=0, keepdim=True) + eps).sqrt()
    spread_std = (std.var(dim=0, keepdim=True) + eps).sqrt()
    scale = (std + noise_std * spread_std) / std
    shift = mean + noise_mean * spread_mean
    out = (flat - mean.unsqueeze(2)) * scale.unsqueeze(2) + shift.unsqueeze(2)
    return out.view_as(x)
