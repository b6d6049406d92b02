"""CMRF: representations between the modalities of the averaged model are taught."""

from collections.abc import Mapping, Sequence

import torch
from mmaction.registry import MODELS
from torch import Tensor
from torch.distributions import Beta

from ..functional import (
    both,
    modality_pairs,
    supervised_contrastive,
    unit_distance,
    weighted_terms,
)
from ..layers import ModalityProjectors, connected_zero
from ..step import StepOutputs
from .base import Objective


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
    # Validation of the arguments would wait for the device.
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


@MODELS.register_module()
class WeightedClassification(Objective):
    r"""Cross-entropies with one weight per modality (CMRF, Fan et al., NeurIPS 2024).

    .. math:: \mathrm{CE}(g(z), y) + \alpha \sum_m w_m \mathrm{CE}(h_m(z_m), y)

    Args:
        unimodal_weight: ``alpha``; CMRF's upstream has 2.0.
        modality_weights: ``{modality: w}``, 1 for those it does not name; names that
            the model does not use are ignored. CMRF's upstream has 1/2 for audio.
    """

    needs_unimodal = True

    def __init__(
        self,
        unimodal_weight: float = 2.0,
        modality_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.unimodal_weight = unimodal_weight
        self.modality_weights = dict(modality_weights or {})

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_fused`` and ``loss_<modality>``."""
        weights = {
            m: self.unimodal_weight * self.modality_weights.get(m, 1.0)
            for m in outputs.unimodal_logits
        }
        return weighted_terms(outputs, 1.0, weights)


@MODELS.register_module()
class RepresentationFlattening(Objective):
    r"""Contrast and interpolated distillation of CMRF (Fan et al., NeurIPS 2024).

    .. math:: \alpha_c \mathrm{SupCon}(r, y) + \alpha_d \sum_{(p,q)}
              \big( w_p \overline{\|u(t_p) - u(r_p)\|}
              + w_q \overline{\|u(t_q) - u(r_q)\|} \big)

    ``r_m = P_m(z_m)`` are projected whole features. ``t_p`` and ``t_q`` lie between the
    averaged model's ``r~_p`` and ``r~_q`` (see :func:`interpolated_teachers`), with
    ratios drawn for each sample and pair. Both terms share ``P``, which is averaged
    with the model. While the teacher is only a copy of the student the second term is
    0.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        contrast_weight: ``alpha_c``; 3.0 upstream.
        distill_weight: ``alpha_d``; 3.0 upstream.
        mixing: Both parameters of the Beta distribution of the ratios; 0.1 upstream.
        modality_weights: ``{modality: w}``, 1 for those it does not name; upstream
            has 1/2 for audio.
        pairs: Pairs ``(p, q)``; all in declared order if None. Upstream's order for
            three modalities is (v, f), (v, a), (f, a): as exchanging p and q, or two
            pairs, changes nothing but which draw they get, it is not reproduced.
        temperature: Of SupCon; 0.1 upstream.
        base_temperature: 0.07 upstream; ``tau / 0.07`` multiplies SupCon.
        hidden_channels: Of ``P``; 2048 upstream.
        out_channels: Of ``P``; 128 upstream.

    Raises:
        ValueError: With fewer than two modalities, or pairs of others.
    """

    filled_in = ("channels",)
    embeds = "flattening"
    needs_teacher = True

    def __init__(
        self,
        channels: Mapping[str, int],
        contrast_weight: float = 3.0,
        distill_weight: float = 3.0,
        mixing: float = 0.1,
        modality_weights: Mapping[str, float] | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        hidden_channels: int = 2048,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        # A pair may be written either way round.
        known = modality_pairs(channels, "RepresentationFlattening")
        self.pairs = known if pairs is None else [tuple(pair) for pair in pairs]
        strange = [pair for pair in self.pairs if tuple(pair) not in known]
        strange = [pair for pair in strange if pair[::-1] not in known]
        if strange or not self.pairs:
            raise ValueError(
                f"RepresentationFlattening: pairs={pairs} must be pairs of different "
                f"modalities out of {list(channels)}"
            )
        if mixing <= 0:
            raise ValueError(f"mixing must be positive; got {mixing}")
        self.contrast_weight, self.distill_weight = contrast_weight, distill_weight
        self.mixing = mixing
        weights = modality_weights or {}
        self.modality_weights = {m: weights.get(m, 1.0) for m in channels}
        self.temperatures = (temperature, base_temperature)
        self.projectors = ModalityProjectors(channels, hidden_channels, out_channels)

    def embed(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``r``; rows that were not encoded are zero."""
        return self.projectors(outputs.features, outputs.present, outputs.rows)[0]

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_contrast`` and ``loss_flattening``."""
        own = outputs.embeddings[self.embeds]
        # As in encode_present: one row alone was not encoded.
        usable = {m: has & (has.sum() > 1) for m, has in outputs.present.items()}
        contrast = supervised_contrastive(
            own, outputs.labels, usable, *self.temperatures
        )
        if outputs.teacher_started:
            flattening = self._flattening(
                own, outputs.teacher.embeddings[self.embeds], usable
            )
        else:
            # The projections still take part, for DistributedDataParallel.
            flattening = connected_zero(*own.values())
        return {
            "loss_contrast": self.contrast_weight * contrast,
            "loss_flattening": self.distill_weight * flattening,
        }

    def _flattening(
        self,
        own: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        usable: Mapping[str, Tensor],
    ) -> Tensor:
        terms = []
        for p, q in self.pairs:
            # (N, 1) each; drawn for every pair, in the order of the pairs.
            ratios = draw_interpolation(self.mixing, len(own[p]), teacher[p])
            targets = interpolated_teachers(
                teacher[p].detach(), teacher[q].detach(), *ratios
            )
            present = both(usable[p], usable[q])
            for m, target in zip((p, q), targets, strict=True):
                distance = unit_distance(target, own[m], present)
                terms.append(self.modality_weights[m] * distance)
        return torch.stack(terms).sum()
