"""Formulas and masks that several methods share, as pure functions.

What one method alone needs stands on top of its own file in ``objectives/`` or
``necks/``. "Published code" is the public benchmark of arXiv 2605.06643, whose
settings the configs follow; "upstream" a method's own repository. Where a paper is
definite it is followed, where it is silent the code.

``N`` samples, ``M`` modalities, ``C`` classes, ``d`` channels of a feature. Quantities
of one modality are passed as ``{modality: value}`` in declared order, ``present`` says
which samples have it (all if None): a mean over samples is one over those that have
what the term needs, and 0 if there are none. Values are computed in float32 at least,
also under autocast.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .step import StepOutputs

ZERO_NORM = 1e-12
"""Vectors that are not longer than this have no direction."""


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities; float64 is kept."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(like: Tensor) -> torch.autocast:
    """Turns autocast off: it would take matrix products in half precision."""
    return torch.autocast(like.device.type, enabled=False)


def gradients_of(
    loss: Tensor,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradient of ``loss``, zero where it does not depend on a parameter.

    Args:
        loss: Scalar; its graph is kept, the step's own backward follows.
        parameters: What to differentiate by.
        scale: The loss is multiplied by it and the gradients are divided by it: in
            float16 small gradients would underflow. None elsewhere: a division is one
            more pass over all of them.
        create_graph: Whether the gradients depend on the parameters themselves, as the
            second order of eq. 5 needs, or are constants.
    """
    gradients = torch.autograd.grad(
        loss if scale is None else loss * scale,
        list(parameters),
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    found = [
        torch.zeros_like(p) if g is None else g
        for g, p in zip(gradients, parameters, strict=True)
    ]
    return found if scale is None else [g / scale for g in found]


def modality_pairs(modalities: Iterable[str], what: str) -> list[tuple[str, str]]:
    """All unordered pairs in declared order, ``[(p, q), ...]`` with p before q.

    Raises:
        ValueError: If there are fewer than two modalities; ``what`` names who asks.
    """
    names = list(modalities)
    if len(names) < 2:
        raise ValueError(
            f"{what} compares modalities and needs at least two; got {names}"
        )
    return list(itertools.combinations(names, 2))


def both(*present: Tensor | None) -> Tensor | None:
    """Which samples are in every mask; None means all."""
    masks = [mask for mask in present if mask is not None]
    # (masks, N) -> (N,)
    return torch.stack(masks).all(dim=0) if masks else None


def masked_mean(values: Tensor, present: Tensor | None = None) -> Tensor:
    """Mean of ``(N,)`` values over the rows in ``present``, all if None; 0 if none."""
    if present is None:
        return values.mean()
    # Not values[present]: indexing by a mask waits for the device.
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
    # Summed over the classes: (N, C) -> (N,)
    divergence = F.kl_div(own, target, reduction="none", log_target=True).sum(dim=1)
    return masked_mean(divergence, present) * temperature**2


def softmax_entropy(logits: Tensor) -> Tensor:
    r"""``- sum_c p log p`` of each row's softmax, ``(N, C) -> (N,)``, in nats."""
    log_p = at_least_float32(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row, ``(N, d) -> (N,)``; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(at_least_float32(x), dim=1)


def unit_rows(x: Tensor) -> Tensor:
    r"""``u(x) = x / ||x||`` of each row, ``(N, d)``.

    A row of norm up to 1e-12 has no direction: it becomes zero, without gradient
    (``F.normalize`` would return a gradient of 1e12). Others are untouched.
    """
    x = at_least_float32(x)
    norms = row_norms(x).unsqueeze(1)  # (N, 1)
    directed = norms > ZERO_NORM
    # The inner where keeps 0 / 0 out of the gradient of what the outer one drops.
    return torch.where(directed, x / torch.where(directed, norms, 1.0), 0.0)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The ``floor(d / 2)`` shared and the remaining specific channels of ``(N, d)``.

    SimMMDG's split, in the published code and upstream.
    """
    cut = x.shape[1] // 2
    return x[:, :cut], x[:, cut:]


def shared_channels(channels: Mapping[str, int]) -> dict[str, int]:
    """Width of each modality's shared half, ``floor(d / 2)``.

    Raises:
        ValueError: If a feature is too narrow to have one.
    """
    if narrow := [m for m, d in channels.items() if d < 2]:
        raise ValueError(
            f"the shared half of a feature needs at least 2 channels; {narrow} have 1"
        )
    return {m: d // 2 for m, d in channels.items()}


def shared_halves(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The shared half of each modality's features."""
    return {m: halves(z)[0] for m, z in features.items()}


def unit_distance(a: Tensor, b: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Mean distance of directions: SimMMDG's translation, CMRF's distillation.

    .. math:: \frac{1}{N} \sum_i \| u(a_i) - u(b_i) \|_2

    Args:
        a: ``(N, d)``, for SimMMDG (Dong et al., NeurIPS 2023) a translated feature.
        b: ``(N, d)``; for SimMMDG the target modality's feature, not detached.
        present: ``(N,) bool``, samples that have both modalities.

    Returns:
        Scalar in [0, 2]; its gradient at distance 0 is 0.
    """
    return masked_mean(row_norms(unit_rows(a) - unit_rows(b)), present)


def supervised_contrastive(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    present: Mapping[str, Tensor] | None = None,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
) -> Tensor:
    r"""Supervised contrastive loss over samples and modalities.

    .. math:: -\frac{\tau}{\tau_0} \frac{1}{|I|} \sum_{i \in I} \frac{1}{|P(i)|}
              \sum_{p \in P(i)} \Big[ \frac{e_i e_p}{\tau}
              - \log \sum_{j \in I, j \ne i} \exp \frac{e_i e_j}{\tau} \Big]

    Anchors ``I`` are all present pairs (sample, modality), positives ``P(i)`` the other
    anchors of the same label, of any modality. One without a positive adds 0 and counts
    in the mean. Khosla et al. (NeurIPS 2020) have no factor ``tau / tau_0``; their
    code, SimMMDG's and all that follow have, with 0.07: at ``tau = 0.1`` a loss without
    it is 30 % smaller.

    Args:
        embeddings: ``{modality: (N, k)}`` of norm 1.
        labels: ``(N,)``.
        present: ``{modality: (N,) bool}``.
        temperature: ``tau``.
        base_temperature: ``tau_0``.

    Returns:
        Scalar; not negative.
    """
    # One row per (sample, modality): M times (N, k) -> (M N, k)
    stacked = at_least_float32(torch.cat(list(embeddings.values())))
    label = labels.repeat(len(embeddings))
    if present is None:
        anchors = torch.ones_like(label, dtype=torch.bool)
    else:
        anchors = torch.cat([present[m] for m in embeddings])
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    others = anchors.unsqueeze(1) & anchors & ~itself  # (M N, M N)
    with full_precision(stacked):
        similarity = stacked @ stacked.T / temperature
    # Not -inf: an anchor that is alone would have a logarithm of zero.
    lowest = torch.finfo(similarity.dtype).min
    total = similarity.masked_fill(~others, lowest).logsumexp(1, keepdim=True)
    positives = others & (label.unsqueeze(1) == label)
    # (M N, M N) -> (M N,), a mean over each anchor's positives
    terms = torch.where(positives, similarity - total, 0.0)
    mean = terms.sum(1) / positives.sum(1).clamp(min=1)
    return -temperature / base_temperature * masked_mean(mean, anchors)


def cross_entropies(outputs: StepOutputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the fused logits and of each modality's, means over who has them.

    Returns:
        Scalar, and ``{modality: scalar}``, in nats.
    """
    fused = masked_cross_entropy(
        at_least_float32(outputs.fused_logits),
        outputs.labels,
        outputs.valid,
    )
    unimodal = {
        m: masked_cross_entropy(
            at_least_float32(logits), outputs.labels, outputs.present[m]
        )
        for m, logits in outputs.unimodal_logits.items()
    }
    return fused, unimodal


def weighted_terms(
    outputs: StepOutputs, fused_weight: Tensor | float, weights: Mapping
) -> dict[str, Tensor]:
    """``loss_fused`` and ``loss_<modality>``, a weighted cross-entropy each.

    Args:
        outputs: Of the step.
        fused_weight: Scalar.
        weights: ``{modality: scalar}``.
    """
    fused, unimodal = cross_entropies(outputs)
    return {"loss_fused": fused_weight * fused} | {
        f"loss_{m}": weights[m] * ce for m, ce in unimodal.items()
    }
