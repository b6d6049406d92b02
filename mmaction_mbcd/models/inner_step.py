"""What the inner step of eq. 5 adapts, and how the second pass runs at theta'."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from .encoders import ModalityEncoder
from .stages import State

BN_SECOND_PASS = ("discard", "shared")


class InnerStep:
    """The model's side of the inner step; the optimizer wrapper takes the step itself.

    Only names are held, so that copies of the model carry no foreign parameters.

    Args:
        encoders: ``{modality: encoder}``.
        scope: A regular expression on ``<modality>.<parameter>``: what is adapted.
        bn_second_pass: ``'discard'``: the second pass leaves BatchNorm's running
            statistics alone. ``'shared'``: it moves them too, as the published code
            does: the branch's, and those of a stem that drifts, which then runs twice.
    """

    def __init__(
        self,
        encoders: Mapping[str, ModalityEncoder],
        scope: str = ".*",
        bn_second_pass: str = "discard",
    ) -> None:
        self.scope, self.bn_second_pass = scope, bn_second_pass
        pattern = re.compile(scope)
        self._parameters: dict[str, list[str]] = {}
        self._branch_buffers: dict[str, list[str]] = {}
        for m, encoder in encoders.items():
            stem = tuple(f"{name}." for name in encoder.stem_modules())
            self._parameters[m] = [
                name
                for name, parameter in encoder.named_parameters()
                if parameter.requires_grad and pattern.search(f"{m}.{name}")
            ]
            self._branch_buffers[m] = [
                name for name, _ in encoder.named_buffers() if not name.startswith(stem)
            ]

    @property
    def is_empty(self) -> bool:
        """Whether the scope matches no trainable parameter."""
        return not any(self._parameters.values())

    def theta(self, encoders: Mapping[str, ModalityEncoder]) -> dict[str, nn.Parameter]:
        """Theta of eq. 5: ``{'<modality>.<name below the encoder>': parameter}``.

        One dict for all modalities: one gradient, one all-reduce.
        """
        return {
            f"{m}.{name}": encoder.get_parameter(name)
            for m, encoder in encoders.items()
            for name in self._parameters[m]
        }

    def call(
        self,
        encoders: Mapping[str, ModalityEncoder],
        theta_prime: Mapping[str, Tensor],
        modality: str,
        state: State,
    ) -> Tensor:
        """A branch at theta', ``(n, d)``; the gradient reaches theta through theta'."""
        encoder = encoders[modality]
        replaced: dict[str, Tensor] = {
            name: theta_prime[f"{modality}.{name}"]
            for name in self._parameters[modality]
        }
        if self.bn_second_pass == "discard":
            # Clones take the second pass's BatchNorm updates and are dropped.
            for name in self._branch_buffers[modality]:
                replaced[name] = encoder.get_buffer(name).clone()
        return functional_call(encoder, replaced, (state,))
