"""Flow as 8 bits: -bound, 0, bound pixels become 1, 128, 255."""

import numpy as np

FLOW_ZERO = 128
"""The grey value of no motion, and the mean that flow is normalised with."""

_STEPS = 127  # grey values on either side: 256 - x mirrors a flow exactly


def quantize_flow(flow: np.ndarray, bound: float) -> np.ndarray:
    """Flow as 8 bits.

    Args:
        flow: Any shape, pixels per frame.
        bound: Positive; larger displacements are clipped.

    Returns:
        uint8 of the same shape.
    """
    scaled = np.clip(np.asarray(flow, np.float64) / bound, -1, 1) * _STEPS
    return (FLOW_ZERO + np.rint(scaled)).astype(np.uint8)


def dequantize_flow(pixels: np.ndarray, bound: float) -> np.ndarray:
    """Flow in pixels per frame, from its 8 bits: the inverse of ``quantize_flow``.

    Exact to half a step, ``bound / 254`` pixels, where the flow was not clipped.

    Args:
        pixels: Any shape, uint8.
        bound: As it was quantised with.

    Returns:
        float32 of the same shape.
    """
    return (pixels.astype(np.float32) - FLOW_ZERO) * np.float32(bound / _STEPS)
