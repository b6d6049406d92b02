"""What a corruption is: a function, its numbers at five severities, their source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...seeding import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)

IMAGENET_C = "ImageNet-C (Hendrycks and Dietterich 2019, ICLR)"
HAC_C = "HAC-C, the protocol published with AEO (Dong et al. 2025)"
OWN = "this project; no published protocol has it for clips"


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Args:
        function: ``(media, rng, *numbers, **options) -> media``. Pure: the result
            follows from its arguments, and they are not changed.
        numbers: The function's numbers at severities 1 to 5.
        source: Where the numbers are from.
        unit: What the numbers are.
        in_file_pixels: Whether they are pixels of the file's own picture, whatever its
            size. Others belong to a picture of 256 pixels on its shorter side.
    """

    function: Callable
    numbers: tuple[tuple[float, ...], ...]
    source: str
    unit: str
    in_file_pixels: bool = False

    def __call__(
        self, media: Any, severity: int, rng: np.random.Generator, **options: Any
    ) -> Any:
        """The corrupted media, of the same type and shape.

        Args:
            media: Frames, flow or a waveform, as the function takes them.
            severity: 1 to 5.
            rng: Where the random numbers come from.
            options: What the function takes beside, such as the sampling rate.
        """
        return self.function(media, rng, *self.numbers[severity - 1], **options)


def refuse_unknown(
    name: str, kinds: Mapping[str, Corruption], kind: str, severity: int
) -> None:
    """Says that there is no such kind, or no such severity.

    Raises:
        ValueError: Naming those that there are.
    """
    if kind not in kinds:
        raise ValueError(f"{name} has no kind {kind!r}; it has {', '.join(kinds)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(
            f"the severity of {name} is one of {list(SEVERITIES)}, from mild to "
            f"severe; got {severity!r}"
        )


def sample_generator(
    seed: int, sample_id: str, modality: str, kind: str
) -> np.random.Generator:
    """The random numbers of one sample's corruption.

    They depend neither on the severity nor on what was read before, nor on the process:
    a clip is corrupted alike at every evaluation, and its severities differ in strength
    only.
    """
    return np.random.default_rng(derive_seed(seed, sample_id, modality, kind))
