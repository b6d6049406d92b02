"""One modality's encoder: a backbone, cut into a frozen stem and a branch."""

import torch
from mmaction.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from . import stages
from .dsu import domain_shift_with_uncertainty
from .stages import State, backbone_stages
from .weights import load_backbone


@MODELS.register_module()
class ModalityEncoder(BaseModule):
    """A backbone whose first stages are frozen and run once per step.

    ``stem(x)`` runs the frozen stages without gradient; calling the encoder runs
    the trainable branch on the stem's output and pools. Only the branch is run
    again at updated parameters (``torch.func.functional_call``), so the two are
    separate calls. For the same weights, branch after stem equals its own
    forward.

    Args:
        backbone: Config of an MMAction2 or MMPretrain backbone.
        frozen_stages: As in MMAction2: ``-1`` freezes nothing (the stem is empty),
            ``0`` the first convolution, ``k`` also ``layer1`` to ``layer<k>``
            (with the lateral connections after them). The paper's encoders: 3.
        stem_norm_eval: Keep the stem's BatchNorm in eval mode, as MMAction2's
            ``frozen_stages`` means. False lets its statistics drift as in the
            published code; the teacher then runs a stem of its own.
        dropout: Of the pooled feature. 0 for MBCD; the published baselines have
            0.5 on video and flow.
        dsu: Probability of perturbing feature statistics (see
            :func:`.dsu.domain_shift_with_uncertainty`) at the stem's and the
            branch's output in the first pass. The published MBCD code has 0.5,
            the paper does not mention it.
        pretrained: ``dict(checkpoint=..., prefix=..., rename=..., skip=...)``, see
            :func:`.weights.load_backbone`.
        feature_channels: ``d`` after pooling; asked of the backbone if None.
        init_cfg: As in MMEngine.

    Raises:
        TypeError: If the backbone cannot be split.
        ValueError: If ``frozen_stages`` leaves nothing to train.
    """

    def __init__(
        self,
        backbone: dict,
        frozen_stages: int = -1,
        stem_norm_eval: bool = True,
        dropout: float = 0.0,
        dsu: float = 0.0,
        pretrained: dict | None = None,
        feature_channels: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if str(backbone.get("type", "")).startswith("mmpretrain."):
            import mmpretrain.models  # noqa: F401  (fills its registry)
        self.backbone = MODELS.build(backbone)
        names = [stage.name for stage in backbone_stages(self.backbone)]
        if not -1 <= frozen_stages < len(names) - 1:
            raise ValueError(
                f"frozen_stages={frozen_stages} of a backbone with stages {names}: "
                f"must be between -1 (none) and {len(names) - 2} (all but the last)"
            )
        self.frozen_stages = frozen_stages
        self.stem_norm_eval = stem_norm_eval
        self.dropout = nn.Dropout(dropout)
        self.dsu = dsu
        self.pretrained = pretrained
        self.feature_channels = feature_channels or stages.feature_channels(
            self.backbone
        )
        for name in self.stem_modules():
            self.get_submodule(name).requires_grad_(False)

    def stem_modules(self) -> list[str]:
        """Dotted names (below the encoder) of the frozen submodules."""
        frozen = backbone_stages(self.backbone)[: self.frozen_stages + 1]
        return [f"backbone.{name}" for stage in frozen for name in stage.modules]

    def init_weights(self) -> None:
        """Initialises as MMAction2 does, then loads ``pretrained``."""
        super().init_weights()
        if self.pretrained is not None:
            load_backbone(self.backbone, **self.pretrained)

    def train(self, mode: bool = True) -> "ModalityEncoder":
        """Sets the mode; the stem stays in eval mode unless told to drift."""
        super().train(mode)
        if self.stem_norm_eval:
            for name in self.stem_modules():
                self.get_submodule(name).eval()
        return self

    @torch.no_grad()
    def stem(self, x: Tensor) -> State:
        """Runs the frozen stages; without any, returns ``x`` itself."""
        for stage in backbone_stages(self.backbone)[: self.frozen_stages + 1]:
            x = stage.run(x)
        return x

    def forward(self, state: State, apply_dsu: bool = False) -> Tensor:
        """Runs the trainable stages and pools.

        Args:
            state: What :meth:`stem` returned; not changed.
            apply_dsu: Apply DSU where ``dsu`` asks for it (the first pass).

        Returns:
            ``(N, d)``.
        """
        apply_dsu = apply_dsu and self.training and self.dsu > 0
        if apply_dsu and self.frozen_stages >= 0:
            state = self._with_dsu(state)
        for stage in backbone_stages(self.backbone)[self.frozen_stages + 1 :]:
            state = stage.run(state)
        if apply_dsu:
            state = self._with_dsu(state)
        return self.dropout(stages.pooled_features(state))

    def _with_dsu(self, state: State) -> State:
        maps = state if isinstance(state, tuple) else (state,)
        # One sample has no spread over the batch, one position none over space. The
        # coin is shared by the pathways, the noise is not (published code).
        too_small = any(len(x) < 2 or x[0, 0].numel() < 2 for x in maps)
        if too_small or torch.rand(()) >= self.dsu:
            return state
        noisy = tuple(
            domain_shift_with_uncertainty(
                x, *torch.randn(2, *x.shape[:2], dtype=x.dtype, device=x.device)
            )
            for x in maps
        )
        return noisy if isinstance(state, tuple) else noisy[0]
