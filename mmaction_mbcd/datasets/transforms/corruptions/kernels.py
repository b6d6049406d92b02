"""Point-spread functions: what becomes of one bright pixel.

ImageNet-C states radii in pixels of images whose shorter side is 256 (224 of which are
cropped). For a picture of another size the whole kernel is scaled, so that a blur is as
wide in proportion, see :func:`scaled_kernel`.
"""

import math

import cv2
import numpy as np

REFERENCE_SIDE = 256
"""Pixels of the shorter side that the published radii belong to."""


def disk_kernel(radius: int, sigma: float) -> np.ndarray:
    """A disk whose edge is smoothed: light out of focus.

    ``[x^2 + y^2 <= radius^2]``, normalised, then smoothed by a Gaussian of 3 x 3 pixels
    up to a radius of 8, of 5 x 5 above.

    Args:
        radius: Pixels.
        sigma: Standard deviation of the Gaussian, pixels.

    Returns:
        ``(K, K)`` float64, sum 1. K is 17 up to a radius of 8, else 2 radius + 1.
    """
    half, size = max(radius, 8), 3 if radius <= 8 else 5
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    smooth = cv2.GaussianBlur(disk / disk.sum(), (size, size), sigmaX=sigma)
    return smooth / smooth.sum()


def motion_kernel(radius: int, sigma: float, angle: float) -> np.ndarray:
    """A fading streak: a camera, or what it sees, that moves during the exposure.

    Half a Gaussian, ``exp(-t^2 / (2 sigma^2))`` at ``t = 0 .. 2 radius``, drawn from
    the centre in one direction, each weight on the nearest pixel.

    Args:
        radius: Pixels; the streak is twice as long.
        sigma: Pixels.
        angle: Degrees counter-clockwise from the right.

    Returns:
        ``(K, K)`` float64, sum 1, ``K = 4 radius + 1``.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    turned = math.radians(angle)
    kernel = np.zeros((4 * radius + 1,) * 2)
    rows = 2 * radius - np.rint(steps * math.sin(turned)).astype(int)
    columns = 2 * radius + np.rint(steps * math.cos(turned)).astype(int)
    np.add.at(kernel, (rows, columns), weights)
    return kernel / kernel.sum()


def scaled_kernel(kernel: np.ndarray, scale: float) -> np.ndarray:
    """A kernel for pictures that are ``scale`` times as large.

    Its cells become squares of ``scale`` pixels; each new pixel holds what lies within
    it. No radius is rounded, the sum stays, and a scale of 1 changes nothing.

    Args:
        kernel: ``(K, K)``, K odd.
        scale: Positive.

    Returns:
        ``(L, L)``, L odd: the pixels that the scaled kernel touches.
    """
    count = len(kernel)
    half = math.ceil(round(count * scale / 2 - 0.5, 9))
    edges = (np.arange(count + 1) - count / 2) * scale
    pixels = np.arange(-half, half + 1)[:, None]
    # (L, K): the share of each cell that lies within each pixel.
    low = np.maximum(pixels - 0.5, edges[:-1])
    high = np.minimum(pixels + 0.5, edges[1:])
    shares = np.maximum(high - low, 0) / scale
    return shares @ kernel @ shares.T
