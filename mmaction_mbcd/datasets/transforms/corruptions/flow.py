"""Corruptions of stored flow itself; the video that it was computed from is not.

Every function takes frames ``(H, W, 2)`` uint8 as :mod:`mmaction_mbcd.flow_coding` has
them, and returns new ones. ``bound`` is the displacement that 255 stands for, in pixels
per frame. How flow changes when the *video* is corrupted is another question: for it
flow has to be computed again.
"""

import numpy as np

from ....flow_coding import FLOW_ZERO, dequantize_flow, quantize_flow
from .severities import OWN, Corruption
from .video import relative_size

Frames = list[np.ndarray]

BLOCKS = 8
"""Blocks along the shorter side."""


def gaussian_noise(
    frames: Frames, rng: np.random.Generator, sigma: float, bound: float
) -> Frames:
    """Adds N(0, sigma^2) to every displacement.

    ``sigma`` is in pixels per frame of a picture whose shorter side is 256, the size at
    which flow is computed; of smaller pictures, whose motion has fewer pixels, it is as
    much smaller.
    """
    sigma = sigma * relative_size(frames)
    return [
        quantize_flow(
            dequantize_flow(frame, bound) + sigma * rng.standard_normal(frame.shape),
            bound,
        )
        for frame in frames
    ]


def block_dropout(
    frames: Frames, rng: np.random.Generator, share: float, bound: float
) -> Frames:
    """Stops the motion in ``share`` of the square blocks, others in each frame.

    A block's side is an eighth of the frame's shorter side. Blocks of a smaller share
    are among those of a larger one.
    """
    height, width = frames[0].shape[:2]
    side = max(min(height, width) // BLOCKS, 1)
    rows, columns = np.arange(height) // side, np.arange(width) // side
    blocks = rows[:, None] * (columns[-1] + 1) + columns  # (H, W): number of the block
    count = blocks[-1, -1] + 1
    stopped = []
    for frame in frames:
        lost = np.zeros(count, bool)
        lost[rng.permutation(count)[: round(share * count)]] = True
        still = lost[blocks][..., None]
        stopped.append(np.where(still, np.uint8(FLOW_ZERO), frame))
    return stopped


def scale(
    frames: Frames, rng: np.random.Generator, factor: float, bound: float
) -> Frames:
    """Multiplies every displacement: motion that is underestimated."""
    return [
        quantize_flow(factor * dequantize_flow(frame, bound), bound) for frame in frames
    ]


FLOW_CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        gaussian_noise,
        ((0.5,), (1,), (2,), (4,), (8,)),
        OWN,
        "standard deviation, pixels of 256 per frame",
    ),
    "block_dropout": Corruption(
        block_dropout,
        ((0.1,), (0.2,), (0.3,), (0.5,), (0.7,)),
        OWN,
        "share of the blocks",
    ),
    "scale": Corruption(scale, ((0.8,), (0.6,), (0.4,), (0.2,), (0.1,)), OWN, "factor"),
}
"""Kinds of corrupted flow."""
