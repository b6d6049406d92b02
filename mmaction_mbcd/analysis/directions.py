"""Random directions in weight space, the same ones for every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

NOT_FUSED = ("unimodal_heads.", "objectives.")
"""Parameters that the fused prediction does not depend on begin with these."""


def perturbed_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters that the fused prediction depends on.

    Those of frozen stems, of unimodal heads and of objectives stay: a step along them
    changes no fused loss, and would shorten the step along the others by a length that
    differs between methods.

    Args:
        model: A recognizer, or any module.

    Returns:
        ``{name: values}``, in the model's order.
    """
    return {
        name: p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith(NOT_FUSED)
    }


def gaussian_direction(
    parameters: Mapping[str, Tensor], seed: int, number: int
) -> dict[str, Tensor]:
    """Standard normal entries, the same for every parameter of a name and shape.

    Args:
        parameters: What to have a direction for.
        seed: Of all directions.
        number: Which direction.

    Returns:
        ``{name: entries}``.
    """
    direction = {}
    for name, value in parameters.items():
        text = f"{seed}/{number}/{name}"
        digest = hashlib.sha256(text.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        entries = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        direction[name] = entries.to(value)
    return direction


def length(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all entries."""
    return sum(float(x.double().square().sum()) for x in tensors.values()) ** 0.5


def unit_direction(direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""A point of the sphere, :math:`d / \|d\|`; uniform if d is standard normal."""
    norm = length(direction)
    return {name: x / norm for name, x in direction.items()}


def filter_normalised(
    direction: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    r"""Each filter of a direction gets the length of the weights' filter.

    .. math:: d_{i,j} \leftarrow \frac{d_{i,j}}{\|d_{i,j}\|} \|\theta_{i,j}\|

    for filter (output channel) j of layer i, Li et al. 2018, "Visualizing the Loss
    Landscape of Neural Nets", section 4. A network whose filters are scaled, with a
    normalisation behind them that takes the scale out, is then as flat as before.
    Parameters of one dimension (biases, gains of normalisations) stay where they are,
    as in the paper's published code.

    Args:
        direction: ``{name: entries}``.
        parameters: ``{name: weights}``.

    Returns:
        ``{name: entries}``.
    """
    normalised = {}
    for name, d in direction.items():
        if d.dim() < 2:
            normalised[name] = torch.zeros_like(d)
            continue
        wanted = parameters[name].flatten(1).norm(dim=1)  # (filters, ...) -> (filters,)
        found = d.flatten(1).norm(dim=1).clamp(min=1e-10)
        shape = (-1, *[1] * (d.dim() - 1))
        normalised[name] = d * (wanted / found).view(shape)
    return normalised


def moved_along(
    parameters: Mapping[str, Tensor], *steps: tuple[float, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The weights after steps along directions: ``theta + sum of length * direction``.

    Args:
        parameters: Theta.
        steps: ``(length, direction)`` each.
    """
    return {
        name: value + sum(size * direction[name] for size, direction in steps)
        for name, value in parameters.items()
    }
