"""Fusion necks: concatenation, and concatenation after modality dropout."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from .. import functional


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
                modalities that are present in the batch. Unused here.

        Returns:
            ``(N, sum d)`` and scalars for the log.
        """
        return torch.cat(list(features.values()), dim=1), {}


@MODELS.register_module()
class AMDFusion(ConcatFusion):
    """Adaptive modality dropout before concatenation, eqs. 2-4.

    In training, each modality of each sample is zeroed with the probability of
    eq. 4, so that confident modalities are seen less. At least one present
    modality of a sample is kept (see :func:`.functional.draw_keep_mask`). In
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
        speed = functional.relative_learning_speed(confidences)
        p = {m: functional.dropout_probability(r).to(like) for m, r in speed.items()}
        return none | p, speed

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        confidences: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`ConcatFusion.forward`; also logs each r, p and kept share."""
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
        keep, probability = functional.draw_keep_mask(
            [p[m] for m in modalities],
            [present[m] for m in modalities],
            uniforms.expand(count, -1),
        )
        masked, logs = {}, {}
        for column, m in enumerate(modalities):
            mask = keep[:, column]
            masked[m] = features[m] * mask.unsqueeze(1).to(features[m].dtype)
            if self.rescale:
                # In the probabilities' precision: 1 - p may be tiny.
                factor = (mask / probability[:, column].clamp(min=1e-6)).unsqueeze(1)
                masked[m] = (features[m] * factor).to(features[m].dtype)
            if m in speed:
                logs[f"r/{m}"] = speed[m]
            logs[f"drop_prob/{m}"] = p[m]
            logs[f"kept/{m}"] = mask.float().mean()
        fused, _ = super().forward(masked, present)
        return fused, logs
