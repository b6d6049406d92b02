"""Fusion by concatenation."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


@MODELS.register_module()
class ConcatFusion(BaseModule):
    """Concatenates the features in the declared order of the modalities.

    Absent samples have zero features and so a zero slot.
    """

    needs_confidence = False
    """Whether :meth:`forward` wants confidences, that is unimodal logits."""

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        confidences: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Fuses one batch.

        Args:
            features: ``{modality: (N, d)}``.
            present: ``{modality: (N,) bool}``.
            confidences: ``{modality: s}`` per sample on average, eq. 2; only the
                modalities that are present in the batch. Not used by concatenation.

        Returns:
            ``(N, sum d)`` and scalars for the log.
        """
        # Side by side, not stacked: modalities differ in width.
        return torch.cat(list(features.values()), dim=1), {}
