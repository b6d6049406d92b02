"""The corruptions as transforms of a dataset's pipeline."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from .audio import (
    AUDIO_CORRUPTIONS,
    TAKES_RECORDING,
    find_recordings,
    read_recording,
)
from .flow import FLOW_CORRUPTIONS
from .severities import Corruption, refuse_unknown, sample_generator
from .video import VIDEO_CORRUPTIONS


class CorruptTransform(BaseTransform):
    """What the transforms of all modalities share.

    A clip is corrupted alike at every evaluation: the random numbers are a function of
    ``seed``, the sample's id, modality and kind. See :func:`.insert_corruption` for
    where it stands in a pipeline.

    Required keys: sample_id.

    Args:
        kind: Which corruption, a key of ``kinds``.
        severity: 1 (mild) to 5 (severe).
        seed: Another one draws other noise.

    Raises:
        ValueError: For an unknown kind or severity, naming those that there are.
    """

    kinds: ClassVar[Mapping[str, Corruption]]
    modality_kind: ClassVar[str]
    """MMAction2's kind of the modality: ``'RGB'``, ``'Flow'`` or ``'Audio'``."""

    def __init__(self, kind: str, severity: int, seed: int = 0) -> None:
        refuse_unknown(type(self).__name__, self.kinds, kind, severity)
        self.kind, self.severity, self.seed = kind, severity, seed
        self.corruption = self.kinds[kind]

    def generator(self, results: dict) -> np.random.Generator:
        """The random numbers of one sample."""
        return sample_generator(
            self.seed, results["sample_id"], self.modality_kind, self.kind
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(kind={self.kind!r}, severity={self.severity}, "
            f"seed={self.seed})"
        )


@TRANSFORMS.register_module()
class CorruptFrames(CorruptTransform):
    """Corrupts decoded video, see :data:`.VIDEO_CORRUPTIONS`.

    Required keys: imgs (list of ``(H, W, 3)`` uint8), sample_id. Changed: imgs.
    """

    kinds = VIDEO_CORRUPTIONS
    modality_kind = "RGB"

    def transform(self, results: dict) -> dict:
        """Corrupts the clip."""
        rng = self.generator(results)
        results["imgs"] = self.corruption(results["imgs"], self.severity, rng)
        return results


@TRANSFORMS.register_module()
class CorruptFlow(CorruptTransform):
    """Corrupts decoded flow itself, see :data:`.FLOW_CORRUPTIONS`.

    Required keys: imgs (list of ``(H, W, 2)`` uint8), sample_id. Changed: imgs.

    Args:
        kind: Which corruption.
        severity: 1 to 5.
        seed: Another one draws other noise.
        bound: Pixels per frame that 255 stands for, as the flow was extracted with.
    """

    kinds = FLOW_CORRUPTIONS
    modality_kind = "Flow"

    def __init__(
        self, kind: str, severity: int, seed: int = 0, bound: float = 20.0
    ) -> None:
        super().__init__(kind, severity, seed)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is a positive number of pixels, got {bound!r}")
        self.bound = bound

    def transform(self, results: dict) -> dict:
        """Corrupts the clip."""
        rng = self.generator(results)
        results["imgs"] = self.corruption(
            results["imgs"], self.severity, rng, bound=self.bound
        )
        return results


@TRANSFORMS.register_module()
class CorruptWaveform(CorruptTransform):
    """Corrupts the waveform, see :data:`.AUDIO_CORRUPTIONS`.

    Required keys: audios ``(samples,)``, sample_rate (Hz), sample_id. Changed: audios.

    Args:
        kind: Which corruption.
        severity: 1 to 5.
        seed: Another one draws other noise.
        recording: For wind and background: a sound file to mix in, or a folder from
            which each sample draws one. ``None``: synthetic sound. The gains of wind
            are those of the published protocol, relative to the file's own level.
    """

    kinds = AUDIO_CORRUPTIONS
    modality_kind = "Audio"

    def __init__(
        self, kind: str, severity: int, seed: int = 0, recording: str | None = None
    ) -> None:
        super().__init__(kind, severity, seed)
        if recording is not None and kind not in TAKES_RECORDING:
            raise ValueError(
                f"{kind!r} mixes in no recording; {', '.join(TAKES_RECORDING)} do"
            )
        self.recordings = () if recording is None else find_recordings(recording)

    def transform(self, results: dict) -> dict:
        """Corrupts the sound.

        Raises:
            ValueError: If the recording cannot be read, or is silent.
        """
        rng, rate = self.generator(results), results["sample_rate"]
        options = {}
        if self.recordings:
            path = self.recordings[rng.integers(len(self.recordings))]
            options["recording"] = read_recording(path, rate)
        results["audios"] = self.corruption(
            results["audios"], self.severity, rng, rate=rate, **options
        )
        return results


@TRANSFORMS.register_module()
class GaussianShift(BaseTransform):
    """Adds N(0, (level * std)^2) to the input of any modality: a modality shift.

    The paper's Figure 1(b) shows accuracy "under varying modality shifts induced by
    Gaussian noise with different variance (shift level)", and says neither to what the
    noise is added nor what the levels are. Here it is added to what the encoder gets,
    in units of that clip's own standard deviation. Normalisation, which is affine,
    changes neither, so a level means the same for all modalities: the energy of the
    input, about its mean, is ``1 / level^2`` times that of the noise. Values are
    neither rounded nor clipped.

    Required keys: imgs or audios (an array or a tensor), sample_id. Changed: that one,
    float32.

    Args:
        level: Standard deviation of the noise, in units of the input's; 0 for none.
        unit: A standard deviation to use instead of the clip's own, in units of the
            input before it is normalised (grey values, say). A clip without motion has
            hardly any of its own.
        seed: Another one draws other noise.

    Raises:
        ValueError: If the level or the unit is negative or not finite.
    """

    def __init__(self, level: float, unit: float | None = None, seed: int = 0) -> None:
        for name, value in (("level", level), ("unit", unit)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is a number from 0, got {value!r}")
        self.level, self.unit, self.seed = level, unit, seed

    def transform(self, results: dict) -> dict:
        """Adds the noise."""
        key = "imgs" if "imgs" in results else "audios"
        rng = sample_generator(
            self.seed, results["sample_id"], results["modality"], "gaussian_shift"
        )
        values = results[key]
        noisy = torch.from_numpy(gaussian_shift(values, rng, self.level, self.unit))
        results[key] = noisy if isinstance(values, torch.Tensor) else noisy.numpy()
        return results

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(level={self.level}, unit={self.unit}, "
            f"seed={self.seed})"
        )


def gaussian_shift(
    values: np.ndarray | torch.Tensor | Sequence[np.ndarray],
    rng: np.random.Generator,
    level: float,
    unit: float | None = None,
) -> np.ndarray:
    """``x + level * unit * n`` with n standard normal.

    Args:
        values: Any shape and type.
        rng: Random numbers, as many for every level.
        level: Ratio of standard deviations.
        unit: The standard deviation that the level is a multiple of; that of the
            values if None.

    Returns:
        float32, of the same shape.
    """
    values = np.asarray(values, np.float32)
    unit = values.std(dtype=np.float64) if unit is None else unit
    noise = rng.standard_normal(values.shape, np.float32)
    return values + np.float32(level * unit) * noise
