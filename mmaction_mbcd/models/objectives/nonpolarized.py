"""NEL: two views of each clip agree, and embeddings fill their space."""

from collections.abc import Mapping

import torch
from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..layers import ModalityProjectors
from ..step import StepOutputs
from .base import Objective
from .supervised_contrastive import shared_channels, shared_halves


@MODELS.register_module()
class NonpolarizedEmbedding(Objective):
    r"""NEL's three regularisers (Neurocomputing 658, 2025, 131754).

    .. math:: w ( \gamma L_{UNC} + \alpha L_C + \beta L_{NEE} )

    UNC contrasts the two views' mean-shifted embeddings
    (:func:`.mmdg_functional.mean_shift`, :func:`.mmdg_functional.view_contrast`), C is
    SupCon over both views, NEE the negative spectral entropy of the fused features
    (:func:`.mmdg_functional.negative_spectral_entropy`). The first two share one
    projection head per modality on its shared half. The embedding of a missing
    modality is a zero slot beside the others. The data set must return two views of
    each clip.

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``w``; 1/2 in the published code, which has it before the
            classification too: give ``ClassificationObjective`` ``weight=0.5``.
        unc_weight: ``gamma``; 0.7 there.
        contrast_weight: ``alpha``; 0.3 there.
        nee_weight: ``beta``; there ``1 / batch size``, with 16 clips per batch.
        neighbours: Of the mean shift; 8 there.
        unc_temperature: 0.25 there.
        temperature: Of SupCon; 0.1 there.
        base_temperature: 0.07 there; ``tau / 0.07`` multiplies SupCon.
        hidden_channels: Of the heads; 2048 there.
        out_channels: Of the heads; 128 there.
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 0.5,
        unc_weight: float = 0.7,
        contrast_weight: float = 0.3,
        nee_weight: float = 1 / 16,
        neighbours: int = 8,
        unc_temperature: float = 0.25,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        hidden_channels: int = 2048,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        self.weights = {
            "unc": weight * unc_weight,
            "contrast": weight * contrast_weight,
            "nee": weight * nee_weight,
        }
        self.neighbours, self.unc_temperature = neighbours, unc_temperature
        self.temperatures = (temperature, base_temperature)
        self.projectors = ModalityProjectors(
            shared_channels(channels), hidden_channels, out_channels
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_unc``, ``loss_contrast`` and ``loss_nee``.

        Raises:
            ValueError: If the batch does not hold two views of each clip.
        """
        if outputs.views != 2:
            raise ValueError(
                "NonpolarizedEmbedding compares two views of each clip, and the batch "
                f"has {outputs.views}: set train_dataloader.dataset.views=2 and "
                "train_dataloader.collate_fn=dict(type='collate_views')"
            )
        embeddings, usable = self.projectors(
            shared_halves(outputs.features), outputs.present, outputs.rows
        )
        shifted = {
            m: formulas.mean_shift(e, usable[m], self.neighbours)
            * usable[m].unsqueeze(1)
            for m, e in embeddings.items()
        }
        first, second = torch.cat(list(shifted.values()), dim=1).chunk(2)
        embedded = torch.stack(list(usable.values())).any(dim=0)
        losses = dict(
            unc=formulas.view_contrast(
                first, second, formulas.both(*embedded.chunk(2)), self.unc_temperature
            ),
            contrast=formulas.supervised_contrastive(
                embeddings, outputs.labels, usable, *self.temperatures
            ),
            nee=formulas.negative_spectral_entropy(
                outputs.fused_features, outputs.valid
            ),
        )
        return {f"loss_{name}": self.weights[name] * x for name, x in losses.items()}
