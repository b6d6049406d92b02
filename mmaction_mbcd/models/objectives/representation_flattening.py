"""CMRF: representations between the modalities of the averaged model are taught."""

from collections.abc import Mapping, Sequence

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..layers import ModalityProjectors, connected_zero
from ..step import StepOutputs
from .base import Objective


@MODELS.register_module()
class RepresentationFlattening(Objective):
    r"""Contrast and interpolated distillation of CMRF (Fan et al., NeurIPS 2024).

    .. math:: \alpha_c \mathrm{SupCon}(r, y) + \alpha_d \sum_{(p,q)}
              \big( w_p \overline{\|u(t_p) - u(r_p)\|}
              + w_q \overline{\|u(t_q) - u(r_q)\|} \big)

    ``r_m = P_m(z_m)`` are projected whole features. ``t_p`` and ``t_q`` lie between
    the averaged model's ``r~_p`` and ``r~_q`` (see
    :func:`.mmdg_functional.interpolated_teachers`), with ratios drawn for each sample
    and pair. Both terms share ``P``, which is averaged with the model. While the
    teacher is only a copy of the student the second term is 0.

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
        known = formulas.modality_pairs(channels, "RepresentationFlattening")
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
        # As encode_present: one row alone was not encoded.
        usable = {m: has & (has.sum() > 1) for m, has in outputs.present.items()}
        contrast = formulas.supervised_contrastive(
            own, outputs.labels, usable, *self.temperatures
        )
        if outputs.teacher_started:
            flattening = self._flattening(
                own, outputs.teacher.embeddings[self.embeds], usable
            )
        else:
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
            ratios = formulas.draw_interpolation(self.mixing, len(own[p]), teacher[p])
            targets = formulas.interpolated_teachers(
                teacher[p].detach(), teacher[q].detach(), *ratios
            )
            present = formulas.both(usable[p], usable[q])
            for m, target in zip((p, q), targets, strict=True):
                distance = formulas.unit_distance(target, own[m], present)
                terms.append(self.modality_weights[m] * distance)
        return torch.stack(terms).sum()
