"""SimMMDG and MOOSA: clips of one class agree across modalities."""

from collections.abc import Mapping

from mmaction.registry import MODELS
from torch import Tensor

from .. import mmdg_functional as formulas
from ..layers import ModalityProjectors
from ..step import StepOutputs
from .base import Objective


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
    return {m: formulas.halves(z)[0] for m, z in features.items()}


@MODELS.register_module()
class SupervisedContrastiveLoss(Objective):
    r"""SupCon on the projected shared halves, SimMMDG (Dong et al., NeurIPS 2023).

    .. math:: \alpha \, \mathrm{SupCon}(P_m(z_m^{shared}), y)

    (see :func:`.mmdg_functional.supervised_contrastive`), with one head ``P`` per
    modality. Anchors are the present (sample, modality).

    Args:
        channels: ``{modality: d}``, filled in by the recognizer.
        weight: ``alpha``; 3.0 in the published code, for SimMMDG and for MOOSA.
        temperature: ``tau``; 0.1 there.
        base_temperature: 0.07 there; ``tau / 0.07`` multiplies the loss.
        hidden_channels: Of the heads; 2048 there.
        out_channels: Of the heads; 128 there.
    """

    filled_in = ("channels",)

    def __init__(
        self,
        channels: Mapping[str, int],
        weight: float = 3.0,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        hidden_channels: int = 2048,
        out_channels: int = 128,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.temperatures = (temperature, base_temperature)
        self.projectors = ModalityProjectors(
            shared_channels(channels), hidden_channels, out_channels
        )

    def forward(self, outputs: StepOutputs) -> dict[str, Tensor]:
        """``loss_contrast``."""
        embeddings, usable = self.projectors(
            shared_halves(outputs.features), outputs.present, outputs.rows
        )
        loss = formulas.supervised_contrastive(
            embeddings, outputs.labels, usable, *self.temperatures
        )
        return {"loss_contrast": self.weight * loss}
