"""The formulas of the compared methods as pure functions, one equation each.

RNA-Net, SimMMDG, MOOSA, CMRF, JAT, NEL and MER-DG. "Published code" is the public
benchmark of arXiv 2605.06643, whose settings the configs follow; "upstream" a method's
own repository. Where a paper is definite it is followed, where it is silent the code.

``N`` samples, ``M`` modalities, ``C`` classes, ``d`` channels of a feature. Quantities
of one modality are passed as ``{modality: value}`` in declared order, ``present`` says
which samples have it (all if None): a mean over samples is one over those that have
what the term needs, and 0 if there are none. Values are computed in float32 at least,
also under autocast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Beta

from .functional import at_least_float32, masked_cross_entropy, masked_mean

ZERO_NORM = 1e-12
"""Vectors that are not longer than this have no direction."""


def full_precision(like: Tensor) -> torch.autocast:
    """Turns autocast off: it would take matrix products in half precision."""
    return torch.autocast(like.device.type, enabled=False)


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
    return torch.stack(masks).all(dim=0) if masks else None


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row, ``(N, d) -> (N,)``; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(at_least_float32(x), dim=1)


def unit_rows(x: Tensor) -> Tensor:
    r"""``u(x) = x / ||x||`` of each row, ``(N, d)``.

    A row of norm up to 1e-12 has no direction: it becomes zero, without gradient
    (``F.normalize`` would return a gradient of 1e12). Others are untouched.
    """
    x = at_least_float32(x)
    norms = row_norms(x).unsqueeze(1)
    directed = norms > ZERO_NORM
    return torch.where(directed, x / torch.where(directed, norms, 1.0), 0.0)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The ``floor(d / 2)`` shared and the remaining specific channels of ``(N, d)``.

    SimMMDG's split, in the published code and upstream.
    """
    cut = x.shape[1] // 2
    return x[:, :cut], x[:, cut:]


# ------------------------------------------------------------------------- RNA-Net


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
    numerator = masked_mean(row_norms(p), present)
    denominator = masked_mean(row_norms(q), present)
    exists = denominator > ZERO_NORM
    ratio = numerator / torch.where(exists, denominator, 1.0)
    return torch.where(exists, (ratio - 1) ** 2, 0.0 * ratio)


# ------------------------------------------------------------------------- SimMMDG


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

    Anchors ``I`` are all pairs (sample, modality) that are there, positives ``P(i)``
    the other anchors of the same label, of any modality. One without a positive adds
    0 and counts in the mean. Khosla et al. (NeurIPS 2020) have no factor
    ``tau / tau_0``; their code, SimMMDG's and all that follow have, with 0.07: at
    ``tau = 0.1`` a loss without it is 30 % smaller.

    Args:
        embeddings: ``{modality: (N, k)}`` of norm 1.
        labels: ``(N,)``.
        present: ``{modality: (N,) bool}``.
        temperature: ``tau``.
        base_temperature: ``tau_0``.

    Returns:
        Scalar; not negative.
    """
    stacked = at_least_float32(torch.cat(list(embeddings.values())))
    label = labels.repeat(len(embeddings))
    if present is None:
        anchors = torch.ones_like(label, dtype=torch.bool)
    else:
        anchors = torch.cat([present[m] for m in embeddings])
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    others = anchors.unsqueeze(1) & anchors & ~itself
    with full_precision(stacked):
        similarity = stacked @ stacked.T / temperature
    # Not -inf: an anchor that is alone would have a logarithm of zero.
    lowest = torch.finfo(similarity.dtype).min
    total = similarity.masked_fill(~others, lowest).logsumexp(1, keepdim=True)
    positives = others & (label.unsqueeze(1) == label)
    terms = torch.where(positives, similarity - total, 0.0)
    mean = terms.sum(1) / positives.sum(1).clamp(min=1)
    return -temperature / base_temperature * masked_mean(mean, anchors)


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
    return masked_mean(((shared - specific) ** 2).mean(dim=1), present)


# --------------------------------------------------------------------------- MOOSA


def softmax_entropy(logits: Tensor) -> Tensor:
    r"""``- sum_c p log p`` of each row's softmax, ``(N, C) -> (N,)``, in nats."""
    log_p = at_least_float32(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def entropy_weights(
    logits: Mapping[str, Tensor],
    present: Mapping[str, Tensor | None],
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    r"""MOOSA's weight of each logit set for each sample (Dong et al., ECCV 2024).

    .. math:: w_s(i) = \mathrm{softmax}_s ( -H_s(i) / T )

    with the entropy ``H`` of the set's softmax. Sets are the modalities' and the fused
    logits; one that a sample does not have gets 0. Not detached: raising a confident
    set's certainty also raises its weight.

    Args:
        logits: ``{set: (N, C)}``.
        present: ``{set: (N,) bool}``, None for all.
        temperature: ``T``.

    Returns:
        ``{set: (N,)}``, weights that sum to 1 over the sets; all equal for a sample
        that has none.
    """
    scores = []
    for s, own in logits.items():
        score = -softmax_entropy(own) / temperature
        if present[s] is not None:
            score = score.masked_fill(~present[s], torch.finfo(score.dtype).min)
        scores.append(score)
    return dict(zip(logits, torch.stack(scores).softmax(dim=0), strict=True))


def smoothed_entropy(
    logits: Tensor, present: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    r"""The entropy that MOOSA minimises, of one logit set.

    .. math:: -\frac{1}{N} \sum_i \sum_c p_{ic} \log(p_{ic} + \epsilon)

    Args:
        logits: ``(N, C)``.
        present: ``(N,) bool``.
        eps: 1e-5 in the published code; it bounds the logarithm.

    Returns:
        Scalar in nats.
    """
    p = at_least_float32(logits).softmax(dim=1)
    return masked_mean(-(p * (p + eps).log()).sum(dim=1), present)


def draw_permutations(count: int, items: int, seed: int = 0) -> Tensor:
    """Distinct random permutations, ``(count, items)``, without listing all of them.

    MOOSA's jigsaw needs 128 of the 4M! orders of 4M pieces. The published code lists
    all, which takes 479 001 600 rows for three modalities; drawing until ``count``
    different ones are found has the same distribution.

    Raises:
        ValueError: If there are not that many.
    """
    if count > math.factorial(items):
        raise ValueError(
            f"{items} pieces have {math.factorial(items)} orders; {count} different "
            "ones were asked for"
        )
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        # On the CPU whatever the default device, as the generator is.
        order = torch.randperm(items, generator=generator, device="cpu")
        found[tuple(order.tolist())] = None
    return torch.tensor(list(found))


def permuted_pieces(
    features: Mapping[str, Tensor], permutations: Tensor, parts: int = 4
) -> Tensor:
    """Every feature cut in equal pieces and put together in every order (MOOSA).

    One gather for all orders: the published loop over them takes thousands of
    operations in backward.

    Args:
        features: ``{modality: (N, d)}``, each ``d`` a multiple of ``parts``; their
            order is that of fusion.
        permutations: ``(K, parts * M)``: the piece at each place.
        parts: Pieces per modality; 4 in the published code.

    Returns:
        ``(K, N, sum d)``. Pieces of different modalities may differ in width.

    Raises:
        ValueError: If a ``d`` is no multiple of ``parts``.
    """
    if uneven := {m: z.shape[1] for m, z in features.items() if z.shape[1] % parts}:
        raise ValueError(f"the widths of {uneven} are no multiples of {parts}")
    joined = torch.cat(list(features.values()), dim=1)
    (count, width), device = joined.shape, joined.device
    widths = torch.tensor([z.shape[1] // parts for z in features.values()])
    widths = widths.repeat_interleave(parts).to(device, non_blocking=True)
    placed = widths[permutations]  # (K, parts * M), width of the piece at each place
    # Where a piece starts in the feature, less where it starts in the result.
    shift = (widths.cumsum(0) - widths)[permutations] - (placed.cumsum(1) - placed)
    orders = len(permutations)
    shift = shift.flatten().repeat_interleave(
        placed.flatten(), output_size=orders * width
    )
    columns = torch.arange(width, device=device) + shift.view(orders, width)
    return joined.expand(orders, count, width).gather(
        2, columns.unsqueeze(1).expand(orders, count, width)
    )


# ---------------------------------------------------------------------------- CMRF


def draw_interpolation(alpha: float, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    r"""CMRF's mixing ratios: ``Beta(alpha, alpha)`` above, and below, one half.

    By symmetry ``max(b, 1 - b)`` of an unconditioned ``b`` has the law of
    ``b | b > 1/2``, and ``min(b, 1 - b)`` that of ``b | b < 1/2``.

    Args:
        alpha: 0.1 upstream: mostly near 0 or 1.
        count: ``N``; every sample has its own.
        like: Gives device and type of the result.

    Returns:
        Two independent tensors ``(N, 1)``, the first in [.5, 1], the other in [0, .5].
    """
    # In float64: at small alpha float32 gammas underflow, and two zeros make it 1/2.
    shape = torch.full((), alpha, dtype=torch.float64, device=like.device)
    first, second = Beta(shape, shape, validate_args=False).sample((2, count, 1))
    above, below = torch.maximum(first, 1 - first), torch.minimum(second, 1 - second)
    return above.to(like), below.to(like)


def interpolated_teachers(
    p: Tensor, q: Tensor, above: Tensor, below: Tensor
) -> tuple[Tensor, Tensor]:
    r"""CMRF's targets between two modalities of the teacher (Fan et al., NeurIPS 2024).

    .. math:: t_p = \lambda_1 \tilde r_p + (1 - \lambda_1) \tilde r_q, \qquad
              t_q = \lambda_2 \tilde r_p + (1 - \lambda_2) \tilde r_q

    Args:
        p: ``(N, k)``, the teacher's embedding of the first modality.
        q: ``(N, k)``, of the second.
        above: ``lambda_1 >= 1/2``, ``(N, 1)``: ``t_p`` stays nearer to p.
        below: ``lambda_2 <= 1/2``, ``(N, 1)``: ``t_q`` stays nearer to q.

    Returns:
        ``t_p`` and ``t_q``, not of norm 1.
    """
    return above * p + (1 - above) * q, below * p + (1 - below) * q


# ----------------------------------------------------------------------------- JAT


def confusion_weights(
    logits: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    temperature: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""JAT's weight of each modality, larger the less its domain can be told.

    .. math:: w_m = \mathrm{softmax}_m ( H_m / T ), \qquad
              H_m = \frac{1}{N} \sum_i H(\mathrm{softmax}(l_{m,i}))

    Not detached in the published code: the weights have a gradient.

    Args:
        logits: ``{modality: (N, S)}`` of the local domain discriminator; the class
            logits if there is one source.
        present: ``{modality: (N,) bool}``, rows that have logits.
        temperature: ``T``.

    Returns:
        ``{modality: w}``, which sum to 1, and ``{modality: H}`` in nats. A modality
        without rows has weight 0; if none has any, all are equal.
    """
    entropies = {
        m: masked_mean(softmax_entropy(own), present[m]) for m, own in logits.items()
    }
    scores = torch.stack(list(entropies.values())) / temperature
    known = torch.stack([present[m].any() for m in logits])
    scores = scores.masked_fill(~known, torch.finfo(scores.dtype).min)
    return dict(zip(logits, scores.softmax(dim=0), strict=True)), entropies


# ----------------------------------------------------------------------------- NEL


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
    summed = (e[nearest.indices] * found.unsqueeze(2)).sum(dim=1)
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
        hidden = ~(present.unsqueeze(1) & present)
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
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
    values = torch.where(values > cutoff, values, 0.0)
    total = values.sum()
    share = values / torch.where(total > 0, total, 1.0)
    return (share * (share + eps).log()).sum().to(at_least_float32(features).dtype)


# -------------------------------------------------------------------------- MER-DG


def _centred(features: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows minus their mean (0 where absent), channels' std, number of rows."""
    z = features.double()
    weight = z.new_ones(len(z), 1)
    if present is not None:
        weight = present.to(z).unsqueeze(1)
    count = weight.sum()
    mean = (z * weight).sum(dim=0) / count.clamp(min=1)
    centred = (z - mean) * weight
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
    rounding = 8 * torch.finfo(at_least_float32(features).dtype).eps
    size = features.detach().double().abs().amax(dim=0)
    varies = std > torch.maximum(rounding * size, torch.full_like(std, ZERO_NORM))
    x = torch.where(varies, centred / torch.where(varies, std, 1.0), 0.0)
    with full_precision(x):
        gram = x @ x.T / ((count - 1).clamp(min=1) * eps)
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    volume = math.log(eps) + torch.logdet(identity + gram) / features.shape[1]
    volume = torch.where(count > 1, volume, 0.0 * volume)
    return volume.to(at_least_float32(features).dtype)
