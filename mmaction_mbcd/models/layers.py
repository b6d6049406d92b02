"""Layers that the losses of several methods bring along."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from .functional import at_least_float32, unit_rows


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        # Apart from forward, so that torch.func can differentiate through it.
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # None: the factor has no gradient.
        return -ctx.factor * gradient, None


def reverse_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``; its gradient is multiplied by ``-factor``.

    What follows learns to tell domains apart, what precedes learns to prevent it
    (Ganin and Lempitsky, ICML 2015).

    Args:
        x: Any shape.
        factor: Not negative.
    """
    return _ReverseGradient.apply(x, factor)


def connected_zero(*parts: nn.Module | Tensor) -> Tensor:
    """A scalar zero that depends on every trainable parameter, and on every tensor.

    A term that nothing of a batch contributes to returns it, so that its parameters
    receive a (zero) gradient; DistributedDataParallel would wait for ever without.

    Args:
        parts: Modules, of which the trainable parameters count, and tensors.

    Returns:
        Scalar of the parts' type.
    """
    zeros = []
    for part in parts:
        tensors = part.parameters() if isinstance(part, nn.Module) else [part]
        # Before the sum: the sum of large half-precision values may be infinite.
        zeros += [(tensor * 0.0).sum() for tensor in tensors if tensor.requires_grad]
    return torch.stack(zeros).sum() if zeros else torch.zeros(())


def encode_present(
    module: nn.Module, values: Tensor, present: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a module that has BatchNorm on the rows of present samples alone.

    Zeros of absent samples would enter BatchNorm's statistics. In training it needs
    two rows: with fewer, nothing is encoded.

    Args:
        module: ``(n, d) -> (n, k)``, with ``k`` as its ``out_channels``.
        values: ``(N, d)``.
        present: ``(N,) bool``.
        rows: Their indices, if they are known: ``StepOutputs.rows``. Deriving them
            waits for the device.

    Returns:
        ``(N, k)``, connected to ``module`` and ``values``, with zeros in the rows
        that were not encoded, and ``(N,) bool``: the rows that were.
    """
    if rows is None:
        rows = present.nonzero().squeeze(1)
    # BatchNorm has no variance of one row.
    if len(rows) < (2 if module.training else 1):
        zero = at_least_float32(connected_zero(module, values)).to(values.device)
        return zero.expand(len(values), module.out_channels), present & False
    if len(rows) == len(values):
        return module(values), present
    encoded = module(values[rows])  # (n, k) of n present rows
    # Back to the places of the batch: (n, k) -> (N, k)
    scattered = encoded.new_zeros(len(values), encoded.shape[1])
    return scattered.index_copy(0, rows, encoded), present


class ProjectionHead(BaseModule):
    """``Linear - BN - ReLU - Linear - BN - ReLU - Linear`` onto the unit sphere.

    Of SimMMDG's published code, and of all that build on it.

    Args:
        in_channels: ``d``.
        hidden_channels: Width of both hidden layers.
        out_channels: ``k``.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 2048,
        out_channels: int = 128,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.BatchNorm1d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, hidden_channels),
            nn.BatchNorm1d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(n, d)`` -> ``(n, k)`` of norm 1, in float32 at least."""
        return unit_rows(self.layers(features))


class ModalityProjectors(BaseModule):
    """One :class:`ProjectionHead` per modality, on the samples that have it.

    Args:
        channels: ``{modality: d}``.
        hidden_channels: Of each head.
        out_channels: ``k`` of each head.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        hidden_channels: int = 2048,
        out_channels: int = 128,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.heads = ModuleDict(
            {
                m: ProjectionHead(width, hidden_channels, out_channels)
                for m, width in channels.items()
            }
        )

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``{modality: (N, k)}`` and which rows were encoded, ``{modality: (N,)}``."""
        encoded, usable = {}, {}
        for m, head in self.heads.items():
            encoded[m], usable[m] = encode_present(
                head, features[m], present[m], rows.get(m)
            )
        return encoded, usable


class DomainProjector(BaseModule):
    """``Linear - ReLU - Dropout``: a modality's feature for a shared discriminator.

    Of the published code of JAT and GMP (arXiv 2605.06643).

    Args:
        in_channels: ``d`` of the modality.
        out_channels: Width that all modalities get.
        dropout: Probability of dropping a unit.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 512,
        dropout: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.layers = nn.Sequential(
            nn.Linear(in_channels, out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(N, d)`` -> ``(N, out_channels)``."""
        return self.layers(features)


class DomainDiscriminator(BaseModule):
    """``Linear - BN - ReLU - Linear``: which source domain is it?

    Of the published code of JAT and GMP (arXiv 2605.06643).

    One for all modalities, after each one's :class:`DomainProjector`. Call it through
    :func:`encode_present` where modalities may be missing.

    Args:
        num_domains: ``S``, number of source domains.
        in_channels: ``out_channels`` of the projectors.
        hidden_channels: Width of the hidden layer.
        init_cfg: As in MMEngine.
    """

    def __init__(
        self,
        num_domains: int,
        in_channels: int = 512,
        hidden_channels: int = 256,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_channels = num_domains
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.BatchNorm1d(hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, num_domains),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(n, in_channels)`` -> logits ``(n, S)``."""
        return self.layers(features)
