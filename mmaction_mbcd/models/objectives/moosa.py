"""MOOSA: certain predictions count more, and puzzles of all modalities are solved.

Beside these two it has SimMMDG's losses (``simmmdg.py``).
"""

import math
from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor, nn

from ..functional import (
    at_least_float32,
    both,
    masked_cross_entropy,
    masked_mean,
    softmax_entropy,
    weighted_terms,
)
from ..step import StepOutputs
from .base import Objective


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
        # The lowest number, not -inf: a sample without any set would give NaN.
        if present[s] is not None:
            score = score.masked_fill(~present[s], torch.finfo(score.dtype).min)
        scores.append(score)
    # (sets, N), softmax over the sets of each sample
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
    # (N, C) -> (N,)
    return masked_mean(-(p * (p + eps).log()).sum(dim=1), present)


def draw_permutations(count: int, items: int, seed: int = 0) -> Tensor:
    """Distinct random permutations, ``(count, items)``, without listing all of them.

    MOOSA's jigsaw needs 128 of the 4M! orders of 4M pieces. The published code lists
    all, which takes 479 001 600 rows for three modalities; drawing until ``count``
    different ones are found has the same distribution.

    Raises:
        ValueError: If the pieces have fewer orders.
    """
    if count > math.factorial(items):
        raise ValueError(
            f"{items} pieces have {math.factorial(items)} orders; {count} different "
            "ones were asked for"
        )
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], None] = {}  # a set that keeps the order of drawing
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
    """
    joined = torch.cat(list(features.values()), dim=1)
    (count, width), device = joined.shape, joined.device
    widths = torch.tensor([z.shape[1] // parts for z in features.values()])
    widths = widths.repeat_interleave(parts).to(device, non_blocking=True)
    placed = widths[permutations]  # (K, parts * M), width of the piece at each place
    # Where a piece starts in the feature, less where it starts in the result.
    shift = (widths.cumsum(0) - widths)[permutations] - (placed.cumsum(1) - placed)
    # From pieces to channels: (K, parts * M) -> (K, sum d). Told the size, torch does
    # not wait for the device to find it.
    orders = len(permutations)
    shift = shift.flatten().repeat_interleave(
        placed.flatten(), output_size=orders * width
    )
    # The channel of the feature that stands in each column of the result.
    columns = torch.arange(width, device=device) + shift.view(orders, width)
    return joined.expand(orders, count, width).gather(
        2, columns.unsqueeze(1).expand(orders, count, width)
    )


@MODELS.register_module()
class EntropyWeightedClassification(Objective):
    r"""MOOSA's classification and entropy minimisation (Dong et al., ECCV 2024).

    .. math:: \sum_s \Big( \frac{1}{N} \sum_i w_s(i) \Big) \mathrm{CE}_s
              + \frac{\beta}{M+1} \sum_s \bar H_s

    over the modalities' and the fused logits ``s``, with the weights of
    :func:`entropy_weights` and the entropies of :func:`smoothed_entropy`. As in the
    published code, the weights are per sample but multiply the batch's mean
    cross-entropy. It takes the place of ``ClassificationObjective``. The prediction is
    the fused head's alone.

    Args:
        temperature: ``T`` of the weights; 1 in the published code.
        entropy_weight: ``beta``; 1e-3 there. Upstream varies it from 1e-3 to 1 with
            the target.
    """

    needs_unimodal = True

    def __init__(self, temperature: float = 1.0, entropy_weight: float = 1e-3) -> None:
        super().__init__()
        self.temperature, self.entropy_weight = temperature, entropy_weight

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused``, ``loss_<modality>`` (w CE each) and ``loss_entropy``."""
        # The fused set has the empty name, which no modality can have.
        logits = {"": outputs.fused_logits} | outputs.unimodal_logits
        present = {"": outputs.valid} | outputs.present
        weights = {
            s: masked_mean(w, outputs.valid)
            for s, w in entropy_weights(logits, present, self.temperature).items()
        }
        entropies = [smoothed_entropy(own, present[s]) for s, own in logits.items()]
        losses = weighted_terms(outputs, weights[""], weights)
        losses["loss_entropy"] = self.entropy_weight * torch.stack(entropies).mean()
        return losses | {
            f"weight/{s or 'fused'}": w.detach() for s, w in weights.items()
        }


@MODELS.register_module()
class JigsawLoss(Objective):
    r"""Multimodal jigsaw puzzles of MOOSA (Dong et al., ECCV 2024).

    .. math:: \frac{1}{K N} \sum_{k,i} \mathrm{CE}(J(\pi_k(z_{i})), k)

    Every feature is cut in equal pieces; a head ``J`` (Linear - ReLU - Linear)
    tells which of ``K`` fixed orders of all pieces it sees. The orders are drawn once
    and saved with the model, as is the head; the published code lists all ``(4M)!``
    orders in every step, does not save the head, and cannot finish a step with three
    modalities. A puzzle needs all pieces: samples without one of the modalities are
    left out.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: Of the loss; 1 in the published code.
        parts: Pieces per modality. None: 4 of two modalities, 2 of more. The published
            code has 4 for all, but upstream's commands for three modalities have 2.
        permutations: ``K``; 128 there.
        hidden_channels: Of the head; 512 there.
        seed: Of the orders.

    Raises:
        ValueError: If a ``d`` is not a multiple of ``parts``, or the pieces have
            fewer than ``K`` orders.
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 1.0,
        parts: int | None = None,
        permutations: int = 128,
        hidden_channels: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if parts is None:
            parts = 4 if len(channels) <= 2 else 2
        if uneven := {m: d for m, d in channels.items() if d % parts}:
            raise ValueError(
                f"JigsawLoss cuts every feature in {parts} equal pieces; the channels "
                f"of {uneven} are not multiples of {parts}"
            )
        self.weight, self.parts = weight, parts
        self.register_buffer(
            "permutations",
            draw_permutations(permutations, parts * len(channels), seed),
        )
        self.head = nn.Sequential(
            nn.Linear(sum(channels.values()), hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, permutations),
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_jigsaw``; logs the head's accuracy."""
        puzzles = permuted_pieces(
            outputs.features, self.permutations, self.parts
        )  # (K, N, sum d)
        # The head sees (K N, sum d), all samples in the first order first.
        logits = at_least_float32(self.head(puzzles.flatten(0, 1)))
        count, samples = puzzles.shape[:2]
        order = torch.arange(count, device=logits.device).repeat_interleave(samples)
        # (N,) -> (K N,): which samples have every piece
        complete = both(*outputs.present.values()).repeat(count)
        loss = masked_cross_entropy(logits, order, complete)
        hit = (logits.detach().argmax(dim=1) == order).to(logits.dtype)
        return {
            "loss_jigsaw": self.weight * loss,
            "acc/jigsaw": masked_mean(hit, complete),
        }
