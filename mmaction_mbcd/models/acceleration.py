"""Two ways to the same numbers that a GPU finds faster; both are options.

Rounding differs, so that a run with one of them is another run.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

_LAYOUT = {4: torch.channels_last, 5: torch.channels_last_3d}


def put_channels_last(module: nn.Module) -> None:
    """Lays convolutions' weights out as tensor cores read them.

    Their outputs, and all that is computed from these, follow. Shapes and values stay,
    in checkpoints, too.
    """
    for p in module.parameters():
        if p.dim() in _LAYOUT:
            p.data = p.data.contiguous(memory_format=_LAYOUT[p.dim()])


def folded(backbone: nn.Module, unused: Iterable[str] = ()) -> nn.Module:
    r"""A copy whose BatchNorms, in eval mode, are part of the convolutions before them.

    .. math:: w' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} w, \quad
              b' = \beta - \frac{\gamma \mu}{\sqrt{\sigma^2 + \epsilon}}

    Args:
        backbone: Whose modules run in the order in which they are declared, as those of
            MMAction2 and MMPretrain do.
        unused: Names of submodules that the copy can do without.

    Raises:
        ValueError: If a BatchNorm stands behind no convolution.
    """
    empty = {id(backbone.get_submodule(name)): nn.Identity() for name in unused}
    found = copy.deepcopy(backbone, empty)
    found.eval()  # of which MMAction2's return nothing
    _fold(found)
    left = [n for n, each in found.named_modules() if isinstance(each, _BatchNorm)]
    if left:
        raise ValueError(
            f"fold_stem_norm: {', '.join(left)} of {type(backbone).__name__} have no "
            "convolution before them; leave the option out"
        )
    return found


def _fold(module: nn.Module) -> None:
    before = None
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and before is not None:
            convolution = getattr(module, before)
            setattr(module, before, fuse_conv_bn_eval(convolution, child))
            setattr(module, name, nn.Identity())
        _fold(child)
        before = name if isinstance(child, _ConvNd) else None
