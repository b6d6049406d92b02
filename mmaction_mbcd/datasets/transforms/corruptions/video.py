"""Corruptions of decoded frames.

Every function takes a clip, a list of frames ``(H, W, 3)`` uint8, RGB, and returns a
new one. Noise is drawn for each frame, as in a sensor; the direction of a blur, the
field of a fog and the change of exposure hold for the clip. The numbers are those of
ImageNet-C. Its code cuts the fractions of grey values off, and here they are rounded.
"""

import functools
import io
import math

import cv2
import numpy as np
import scipy
from PIL import Image

from .kernels import REFERENCE_SIDE, disk_kernel, motion_kernel, scaled_kernel
from .severities import HAC_C, IMAGENET_C, OWN, Corruption

Frames = list[np.ndarray]

_LEVELS = 65536  # what a 16-bit random number can be


def relative_size(frames: Frames) -> float:
    """How much larger the frames are than those that the numbers belong to."""
    return min(frames[0].shape[:2]) / REFERENCE_SIDE


def weighted(
    frame: np.ndarray, weight: float, other: np.ndarray, by: float
) -> np.ndarray:
    """``weight * frame + by * other``, rounded and clipped to uint8 in one pass."""
    return cv2.addWeighted(frame, weight, other, by, 0, dtype=cv2.CV_8U)


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest grey value and clipped; uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------
# Noise


def gaussian_noise(frames: Frames, rng: np.random.Generator, sigma: float) -> Frames:
    """Adds N(0, sigma^2) to every value; ``sigma`` in units of white (255)."""
    return [
        weighted(f, 1, rng.standard_normal(f.shape, np.float32), 255 * sigma)
        for f in frames
    ]


def shot_noise(frames: Frames, rng: np.random.Generator, photons: float) -> Frames:
    """Counts light: a value x of [0, 1] becomes ``Poisson(photons x) / photons``.

    Mean x and variance ``x / photons``, before values above white are clipped. Drawn
    through the inverse distribution function at 65,536 quantiles, a table that is made
    once: twenty times as fast as Poisson draws, and off by 1 / 65,536 in probability.
    """
    table = poisson_table(photons)
    drawn = []
    for frame in frames:
        quantiles = rng.integers(0, _LEVELS, frame.shape, np.uint16)
        drawn.append(table[frame.astype(np.int32) * _LEVELS + quantiles])
    return drawn


@functools.lru_cache(maxsize=1)  # 16 MB; an evaluation stays with one severity
def poisson_table(photons: float) -> np.ndarray:
    """What each quantile of each grey value's Poisson distribution is shown as.

    Returns:
        ``(256 * 65536,)`` uint8: grey value by grey value, quantiles ascending.
    """
    highest = math.ceil(photons + 12 * math.sqrt(photons) + 12)
    counts = np.arange(highest + 1)
    shown = to_pixels(counts / photons * 255)
    rates = np.arange(256)[:, None] / 255 * photons
    below = np.rint(scipy.stats.poisson.cdf(counts, rates) * _LEVELS).astype(int)
    below[:, -1] = _LEVELS
    repeats = np.diff(below, axis=1, prepend=0)  # (256, counts), rows sum to 65,536
    return np.repeat(np.tile(shown, 256), repeats.ravel())


def impulse_noise(frames: Frames, rng: np.random.Generator, share: float) -> Frames:
    """Salt and pepper: of all values half of ``share`` becomes 0, and half 255."""
    half = round(share / 2 * _LEVELS)
    noisy = []
    for frame in frames:
        drawn = rng.integers(0, _LEVELS, frame.shape, np.uint16)
        frame = np.where(drawn < half, np.uint8(0), frame)
        noisy.append(np.where(drawn >= _LEVELS - half, np.uint8(255), frame))
    return noisy


# --------------------------------------------------------------------------------
# Blur


def convolved(frames: Frames, kernel: np.ndarray) -> Frames:
    """Each channel convolved with an odd kernel; the border is mirrored."""
    # OpenCV correlates.
    flipped = np.ascontiguousarray(kernel[::-1, ::-1], np.float32)
    return [cv2.filter2D(f, -1, flipped, borderType=_BORDER) for f in frames]


_BORDER = cv2.BORDER_REFLECT_101


def defocus(
    frames: Frames, rng: np.random.Generator, radius: int, sigma: float
) -> Frames:
    """Blurs by a disk, :func:`.disk_kernel`, scaled to the size of the frames."""
    kernel = disk_kernel(radius, sigma)
    return convolved(frames, scaled_kernel(kernel, relative_size(frames)))


def defocus_in_file(
    frames: Frames, rng: np.random.Generator, radius: int, sigma: float
) -> Frames:
    """As :func:`defocus`, with the radius in pixels whatever the frames' size."""
    return convolved(frames, disk_kernel(radius, sigma))


def motion_blur(
    frames: Frames, rng: np.random.Generator, radius: int, sigma: float
) -> Frames:
    """Blurs by a streak, :func:`.motion_kernel`, at -45 to 45 degrees, one a clip."""
    kernel = motion_kernel(radius, sigma, rng.uniform(-45, 45))
    return convolved(frames, scaled_kernel(kernel, relative_size(frames)))


def zoom_blur(
    frames: Frames, rng: np.random.Generator, largest: float, step: float
) -> Frames:
    """The mean of each frame and of its magnifications 1, 1 + step, ... largest."""
    factors = 1 + step * np.arange(round((largest - 1) / step) + 1)
    height, width = frames[0].shape[:2]
    blurred = [frame.astype(np.float32, order="C") for frame in frames]
    for factor in factors:
        maps = _magnifying_maps(height, width, factor)
        for frame, total in zip(frames, blurred, strict=True):
            cv2.accumulate(cv2.remap(frame, *maps, cv2.INTER_LINEAR), total)
    share = 1 / (len(factors) + 1)
    return [weighted(total, share, total, 0) for total in blurred]


def _magnifying_maps(
    height: int, width: int, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel where its value lies, nearer to the middle by the factor."""
    y, x = (
        (np.arange(n) - (n - 1) / 2) / factor + (n - 1) / 2 for n in (height, width)
    )
    maps = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return cv2.convertMaps(*maps, cv2.CV_16SC2)


# --------------------------------------------------------------------------------
# Light


def brightness(frames: Frames, rng: np.random.Generator, more: float) -> Frames:
    """Adds ``more`` (of 1) to V of HSV, with hue and saturation kept.

    V is the largest channel, so all three are multiplied by ``min(V + more, 1) / V``.
    Black, which has no hue, becomes grey.
    """
    v = np.arange(256)
    # Of black, which is raised to 1 first, the factor is the new value itself.
    factors = np.minimum(v + 255 * more, 255) / np.maximum(v, 1)
    return [_multiplied(frame, factors.astype(np.float32)) for frame in frames]


def _multiplied(frame: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Each pixel times the factor that belongs to its largest channel."""
    value = functools.reduce(np.maximum, cv2.split(frame))
    shown = np.maximum(frame, (value == 0)[..., None])
    factor = cv2.merge([cv2.LUT(value, factors)] * 3)
    return cv2.multiply(shown, factor, dtype=cv2.CV_8U)


def contrast(frames: Frames, rng: np.random.Generator, kept: float) -> Frames:
    """Moves values to their channel's mean m over the clip: ``m + kept (x - m)``."""
    means = np.mean([cv2.mean(frame)[:3] for frame in frames], axis=0)
    x = np.arange(256)[:, None]
    table = to_pixels(means + kept * (x - means))[None]  # (1, 256, 3)
    return [cv2.LUT(frame, table) for frame in frames]


def fog(
    frames: Frames, rng: np.random.Generator, thickness: float, decay: float
) -> Frames:
    """Adds a cloud f, one for the clip: ``(x + thickness f) m / (m + thickness)``.

    ``x`` in [0, 1]; m is the clip's largest x, which stays the largest possible.
    """
    height, width = frames[0].shape[:2]
    field = _covering(cloud(rng, decay), height, width, relative_size(frames))
    most = max(int(frame.max()) for frame in frames) / 255
    factor = most / (most + thickness)
    haze = cv2.merge([255 * thickness * field] * 3)
    return [weighted(frame, factor, haze, factor) for frame in frames]


def cloud(
    rng: np.random.Generator, decay: float, size: int = REFERENCE_SIDE
) -> np.ndarray:
    """A plasma fractal by the diamond-square algorithm; it continues at its edges.

    The grid is halved again and again. A new point is the mean of its four neighbours
    plus a uniform number in [-a, a], where a starts at 1 and is divided by ``decay^2``
    at each halving. (ImageNet-C's code multiplies its amplitude by itself, which is
    where the square comes from.)

    Args:
        rng: Random numbers; as many for every decay.
        decay: Above 1. A smaller one leaves finer structure.
        size: A power of two.

    Returns:
        ``(size, size)`` float64 in [0, 1], both of which occur.
    """
    field = np.zeros((1, 1))
    amplitude = 1.0
    while len(field) < size:
        count = len(field)
        wider = np.zeros((2 * count, 2 * count))
        wider[::2, ::2] = field
        below = field + np.roll(field, -1, 0)
        middles = (below + np.roll(below, -1, 1)) / 4
        middles += amplitude * rng.uniform(-1, 1, middles.shape)
        wider[1::2, 1::2] = middles
        # Midpoints of the sides have two corners and two middles as neighbours.
        above = field + np.roll(field, -1, 1) + middles + np.roll(middles, 1, 0)
        left = below + middles + np.roll(middles, 1, 1)
        wider[::2, 1::2] = above / 4 + amplitude * rng.uniform(-1, 1, above.shape)
        wider[1::2, ::2] = left / 4 + amplitude * rng.uniform(-1, 1, left.shape)
        field, amplitude = wider, amplitude / decay**2
    field = field - field.min()
    return field / field.max()


def _covering(field: np.ndarray, height: int, width: int, scale: float) -> np.ndarray:
    """A field that continues at its edges, scaled and repeated over a picture."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    # Pixel middles on pixel middles; OpenCV wraps around by itself.
    maps = ((np.float32(n) + 0.5) / scale - 0.5 for n in (x, y))
    return cv2.remap(
        field.astype(np.float32),
        *(m.astype(np.float32) for m in maps),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


# --------------------------------------------------------------------------------
# Transmission


def jpeg(frames: Frames, rng: np.random.Generator, quality: int) -> Frames:
    """Each frame through JPEG, as Pillow writes it at a quality (of 1 to 95)."""
    decoded = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        decoded.append(np.array(Image.open(file)))
    return decoded


def frame_drop(frames: Frames, rng: np.random.Generator, share: float) -> Frames:
    """Loses ``round(share T)`` of T frames; the last that arrived is shown instead.

    The first frame always arrives. Which ones are lost is random, and those of a
    smaller share are among those of a larger one. Frames are those that were sampled,
    not those between them.
    """
    order = rng.permutation(np.arange(1, len(frames)))
    lost = set(order[: round(share * len(frames))].tolist())
    shown: Frames = []
    for number, frame in enumerate(frames):
        shown.append(shown[-1] if number in lost else frame)
    # A copy for every repetition: a later transform may write into a frame.
    return [frame.copy() for frame in shown]


_DISKS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))

VIDEO_CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        gaussian_noise,
        ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        IMAGENET_C,
        "standard deviation; white is 1",
    ),
    "shot_noise": Corruption(
        shot_noise, ((60,), (25,), (12,), (5,), (3,)), IMAGENET_C, "photons at white"
    ),
    "impulse_noise": Corruption(
        impulse_noise,
        ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        IMAGENET_C,
        "share of values",
    ),
    "defocus": Corruption(
        defocus, _DISKS, IMAGENET_C, "radius and sigma, pixels of 256"
    ),
    # Published for files of any size, as they are.
    "defocus_hac_c": Corruption(
        defocus_in_file,
        _DISKS,
        HAC_C,
        "radius and sigma, pixels of the file",
        in_file_pixels=True,
    ),
    "motion_blur": Corruption(
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        IMAGENET_C,
        "radius and sigma, pixels of 256",
    ),
    "zoom_blur": Corruption(
        zoom_blur,
        ((1.11, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03)),
        IMAGENET_C,
        "largest magnification, step",
    ),
    "brightness": Corruption(
        brightness,
        ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        IMAGENET_C,
        "added to V; white is 1",
    ),
    "contrast": Corruption(
        contrast,
        ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        IMAGENET_C,
        "share of the contrast that is kept",
    ),
    "fog": Corruption(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        IMAGENET_C,
        "thickness; decay of the cloud",
    ),
    "jpeg": Corruption(jpeg, ((25,), (18,), (15,), (10,), (7,)), IMAGENET_C, "quality"),
    "frame_drop": Corruption(
        frame_drop,
        ((1 / 8,), (2 / 8,), (3 / 8,), (4 / 8,), (6 / 8,)),
        OWN,
        "share of the frames",
    ),
}
"""Kinds of corrupted video."""
