"""MOOSA: in which order do the pieces of all modalities lie?"""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor, nn

from .. import mmdg_functional as formulas
from ..functional import at_least_float32, masked_cross_entropy
from ..step import StepOutputs
from .base import Objective


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
            formulas.draw_permutations(permutations, parts * len(channels), seed),
        )
        self.head = nn.Sequential(
            nn.Linear(sum(channels.values()), hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, permutations),
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_jigsaw``; logs the head's accuracy."""
        puzzles = formulas.permuted_pieces(
            outputs.features, self.permutations, self.parts
        )  # (K, N, sum d)
        logits = at_least_float32(self.head(puzzles.flatten(0, 1)))
        count, samples = puzzles.shape[:2]
        order = torch.arange(count, device=logits.device).repeat_interleave(samples)
        complete = formulas.both(*outputs.present.values()).repeat(count)
        loss = masked_cross_entropy(logits, order, complete)
        hit = (logits.detach().argmax(dim=1) == order).to(logits.dtype)
        return {
            "loss_jigsaw": self.weight * loss,
            "acc/jigsaw": formulas.masked_mean(hit, complete),
        }
