"""What the corruptions look like: a clean clip beside its five severities."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from PIL import Image  # noqa: E402

from ..datasets.seeding import derive_seed  # noqa: E402
from ..datasets.transforms import LogSpectrogram  # noqa: E402
from ..datasets.transforms.corruptions import (  # noqa: E402
    AUDIO_CORRUPTIONS,
    FLOW_CORRUPTIONS,
    SEVERITIES,
    VIDEO_CORRUPTIONS,
    Corruption,
)
from ..flow_coding import FLOW_ZERO  # noqa: E402

_COLUMNS = 2  # of kinds; each has the clean clip and its severities side by side
_TILE, _GAP = 72, 8  # pixels: of a picture, and between two
_COLOURS = 255  # of the PNG, which would be three times as large without a palette


class _Group(NamedTuple):
    """The kinds of a modality, what they take, and how it is shown."""

    name: str
    kinds: Mapping[str, Corruption]
    clean: object
    options: Mapping[str, object]
    picture: Callable
    limits: Callable  # of the clean picture: what is black and what is white


def draw_corruptions(
    frames: list[np.ndarray],
    waveform: np.ndarray,
    flow: list[np.ndarray],
    path: str | Path,
    sample_rate: int = 16000,
    bound: float = 20.0,
    seed: int = 0,
) -> None:
    """Draws every kind of every modality, clean and at five severities, in one PNG.

    Of a clip its middle frame is shown; of lost frames one row of pixels over time,
    downwards; of sound the log spectrogram; of flow its x component.

    Args:
        frames: ``(H, W, 3)`` uint8 each, RGB.
        waveform: ``(samples,)``.
        flow: ``(H, W, 2)`` uint8 each.
        path: Of the PNG.
        sample_rate: Of the waveform, Hz.
        bound: Pixels per frame that the flow was quantised with.
        seed: Of the random numbers.
    """
    rate = dict(rate=sample_rate)
    groups = [
        _Group("video", VIDEO_CORRUPTIONS, frames, {}, _middle, _whole_range),
        _Group(
            "audio", AUDIO_CORRUPTIONS, waveform, rate, _spectrogram(sample_rate), _own
        ),
        _Group(
            "flow", FLOW_CORRUPTIONS, flow, dict(bound=bound), _middle_x, _around_zero
        ),
    ]
    rows = [row for group in groups for row in _rows(group, seed)]
    height = -(-len(rows) // _COLUMNS)
    size = (_COLUMNS * 5.7, height * (_TILE + _GAP) / 100 + 0.3)
    figure, axes = plt.subplots(1, _COLUMNS, figsize=size, layout="constrained")
    for place, axis in enumerate(axes):
        _draw_column(axis, rows[place * height :][:height], height)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    with Image.open(path) as image:
        smaller = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    smaller.save(path, optimize=True)


class _Row(NamedTuple):
    name: str
    pictures: list[np.ndarray]
    limits: tuple[float, float]


def _rows(group: _Group, seed: int) -> Iterator[_Row]:
    for kind, corruption in group.kinds.items():
        entropy = derive_seed(seed, group.name, kind)
        shown = [group.clean] + [
            corruption(
                group.clean, severity, np.random.default_rng(entropy), **group.options
            )
            for severity in SEVERITIES
        ]
        picture = _over_time if kind == "frame_drop" else group.picture
        pictures = [picture(each) for each in shown]
        limits = group.limits(pictures[0])
        yield _Row(f"{group.name}\n{kind.replace('_', ' ')}", pictures, limits)


def _draw_column(axis: Axes, rows: list[_Row], height: int) -> None:
    step, count = _TILE + _GAP, len(SEVERITIES) + 1
    mosaic = np.full((height * step, count * step, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row.pictures):
            y, x = i * step, j * step
            mosaic[y : y + _TILE, x : x + _TILE] = _tile(picture, *row.limits)
    axis.imshow(mosaic, interpolation="none")
    middles = np.arange(max(height, count)) * step + _TILE / 2
    axis.set_yticks(middles[: len(rows)], [row.name for row in rows], fontsize=7)
    axis.set_xticks(middles[:count], ["clean", *SEVERITIES], fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _tile(picture: np.ndarray, low: float, high: float) -> np.ndarray:
    """``(_TILE, _TILE, 3)`` uint8, of a grey or an RGB picture of any size."""
    grey = (np.asarray(picture, np.float32) - low) / (high - low)
    shown = np.uint8(255 * np.clip(grey, 0, 1))
    # By nearest neighbours: averaging would hide noise.
    shown = cv2.resize(shown, (_TILE, _TILE), interpolation=cv2.INTER_NEAREST)
    return shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=-1)


def _whole_range(picture: np.ndarray) -> tuple[float, float]:
    return 0, 255


def _own(picture: np.ndarray) -> tuple[float, float]:
    return picture.min(), picture.max()


def _around_zero(picture: np.ndarray) -> tuple[float, float]:
    """No motion is the middle; twice the clip's fastest motion is white."""
    fastest = 2 * max(np.abs(picture.astype(int) - FLOW_ZERO).max(), 1)
    return FLOW_ZERO - fastest, FLOW_ZERO + fastest


def _middle(frames: list[np.ndarray]) -> np.ndarray:
    return frames[len(frames) // 2]


def _middle_x(flow: list[np.ndarray]) -> np.ndarray:
    return _middle(flow)[..., 0]


def _over_time(frames: list[np.ndarray]) -> np.ndarray:
    """The middle row of every frame, ``(T, W, 3)``."""
    return np.stack([frame[len(frame) // 2] for frame in frames])


def _spectrogram(sample_rate: int) -> Callable[[np.ndarray], np.ndarray]:
    transform = LogSpectrogram(nperseg=256, noverlap=128)

    def picture(waveform: np.ndarray) -> np.ndarray:
        results = transform(dict(audios=waveform, sample_rate=sample_rate))
        return results["audios"][::-1]  # low frequencies below

    return picture
