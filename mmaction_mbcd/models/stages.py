"""MMAction2's backbones as a chain of stages, so that they can be cut in two.

A backbone is used as it is; this module only knows in which order its parts run.
Cutting after stage ``k`` gives a stem (stages ``0..k``) and a branch (the rest),
whose composition equals their own ``forward``.

Another family is added by registering a function::

    @backbone_stages.register
    def _(backbone: MyBackbone) -> list[Stage]: ...
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from mmaction.models import ResNet, ResNet3d, ResNet3dSlowFast
from torch import Tensor, nn
from torch.nn import functional as F

State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Stage:
    """One step of a backbone.

    Attributes:
        name: For messages, ``stem`` or ``layer<i>``.
        modules: Dotted names of the backbone's submodules that it runs.
        run: Maps the state before it to the state after it.
    """

    name: str
    modules: tuple[str, ...]
    run: Callable[[State], State]


@singledispatch
def backbone_stages(backbone: nn.Module) -> list[Stage]:
    """The stages of ``backbone`` in the order in which they run.

    Args:
        backbone: A built MMAction2 or MMPretrain backbone.

    Raises:
        TypeError: If nobody said how this backbone is staged.
    """
    # MMPretrain's ResNets are recognised by shape: importing the package only to
    # name their class would cost its optional dependencies.
    if hasattr(backbone, "res_layers") and hasattr(backbone, "deep_stem"):
        return _mmpretrain_resnet(backbone)
    raise TypeError(
        f"{type(backbone).__name__} cannot be split into stages: supported are "
        "MMAction2's ResNet, ResNet3d (SlowOnly) and ResNet3dSlowFast families and "
        "MMPretrain's ResNet family; register another with "
        "mmaction_mbcd.models.stages.backbone_stages.register"
    )


def _mmpretrain_resnet(backbone: nn.Module) -> list[Stage]:
    def stem(x: Tensor) -> Tensor:
        if backbone.deep_stem:
            return backbone.maxpool(backbone.stem(x))
        return backbone.maxpool(backbone.relu(backbone.norm1(backbone.conv1(x))))

    first = ("stem",) if backbone.deep_stem else ("conv1", backbone.norm1_name)
    return [
        Stage("stem", first, stem),
        *(
            Stage(name, (name,), getattr(backbone, name))
            for name in backbone.res_layers
        ),
    ]


@backbone_stages.register
def _(backbone: ResNet) -> list[Stage]:
    return [
        Stage("stem", ("conv1",), lambda x: backbone.maxpool(backbone.conv1(x))),
        *(
            Stage(name, (name,), getattr(backbone, name))
            for name in backbone.res_layers
        ),
    ]


@backbone_stages.register
def _(backbone: ResNet3d) -> list[Stage]:
    def stem(x: Tensor) -> Tensor:
        x = backbone.conv1(x)
        return backbone.maxpool(x) if backbone.with_pool1 else x

    def layer1(x: Tensor) -> Tensor:
        x = getattr(backbone, backbone.res_layers[0])(x)
        return backbone.pool2(x) if backbone.with_pool2 else x

    first, *others = backbone.res_layers
    return [
        Stage("stem", ("conv1",), stem),
        Stage(first, (first,), layer1),
        *(Stage(name, (name,), getattr(backbone, name)) for name in others),
    ]


@backbone_stages.register
def _(backbone: ResNet3dSlowFast) -> list[Stage]:
    slow_path, fast_path = backbone.slow_path, backbone.fast_path

    def join(slow: Tensor, fast: Tensor, lateral: str | None) -> State:
        if lateral is not None:
            slow = torch.cat((slow, getattr(slow_path, lateral)(fast)), dim=1)
        return slow, fast

    def resampled(x: Tensor, rate: float) -> Tensor:
        return F.interpolate(x, mode="nearest", scale_factor=(1.0 / rate, 1.0, 1.0))

    def stem(x: Tensor) -> State:
        slow = resampled(x, backbone.resample_rate)
        fast = resampled(x, backbone.resample_rate // backbone.speed_ratio)
        slow = slow_path.maxpool(slow_path.conv1(slow))
        fast = fast_path.maxpool(fast_path.conv1(fast))
        return join(slow, fast, "conv1_lateral" if slow_path.lateral else None)

    def layer(name: str, lateral: str | None) -> Callable[[State], State]:
        def run(state: State) -> State:
            slow, fast = state
            slow, fast = getattr(slow_path, name)(slow), getattr(fast_path, name)(fast)
            return join(slow, fast, lateral)

        return run

    def names(name: str, lateral: str | None) -> tuple[str, ...]:
        own = (f"slow_path.{name}", f"fast_path.{name}")
        return own if lateral is None else (*own, f"slow_path.{lateral}")

    conv1_lateral = "conv1_lateral" if slow_path.lateral else None
    stages = [Stage("stem", names("conv1", conv1_lateral), stem)]
    for index, name in enumerate(slow_path.res_layers):
        last = index == len(slow_path.res_layers) - 1
        lateral = (
            slow_path.lateral_connections[index]
            if slow_path.lateral and not last
            else None
        )
        stages.append(Stage(name, names(name, lateral), layer(name, lateral)))
    return stages


def feature_channels(backbone: nn.Module) -> int:
    """Number of channels after the last stage (both pathways together)."""
    if isinstance(backbone, ResNet3dSlowFast):
        return backbone.slow_path.feat_dim + backbone.fast_path.feat_dim
    if hasattr(backbone, "feat_dim"):
        return backbone.feat_dim
    raise TypeError(
        f"{type(backbone).__name__} does not tell its number of output channels: "
        "give the encoder feature_channels=<number>"
    )


def pooled_features(state: State) -> Tensor:
    """Global average over space and time, ``(N, d)``.

    SlowFast gives ``[fast, slow]``, the order of the field's published features.
    """
    maps = state if isinstance(state, tuple) else (state,)
    return torch.cat([x.flatten(2).mean(dim=2) for x in reversed(maps)], dim=1)
