"""Classification heads."""

from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class MLPHead(BaseModule):
    """``Linear(d, hidden) - ReLU - Dropout - Linear(hidden, C)``.

    The fused head of SimMMDG and of MBCD's published code, which uses the same for
    each modality. ``hidden_channels=None`` makes it one linear layer.

    Args:
        in_channels: ``d``; the recognizer fills it in from its encoders.
        num_classes: ``C``.
        hidden_channels: Width of the hidden layer, or None.
        dropout: Probability of dropping a hidden unit.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_channels: int | None = 512,
        dropout: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if hidden_channels is None:
            self.layers = nn.Sequential(nn.Linear(in_channels, num_classes))
        else:
            self.layers = nn.Sequential(
                nn.Linear(in_channels, hidden_channels),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden_channels, num_classes),
            )

    def forward(self, features: Tensor) -> Tensor:
        """``(N, d)`` -> logits ``(N, C)``."""
        return self.layers(features)
