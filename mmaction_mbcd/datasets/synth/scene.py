"""Where everything is, frame by frame: the object, its track, camera and passer-by."""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import signal


class Pose(NamedTuple):
    """Where the object is, per frame: each field is (T,) float64.

    Attributes:
        x: Offset to the right of the clip's centre point, in frame widths.
        y: Offset downwards, in frame heights.
        scale: Size relative to the object's own.
        angle: Clockwise rotation in radians.
    """

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray

    def path(self) -> np.ndarray:
        """The offsets, (T, 2)."""
        return np.stack([self.x, self.y], axis=1)


def action_pose(action: str, random: Generator, times: np.ndarray) -> Pose:
    """Motion of one instance of an action at ``times`` (seconds)."""
    # Every action draws the same numbers, so clips of one index differ by action.
    frequency = random.uniform(0.8, 1.6)  # Hz
    amplitude = random.uniform(0.085, 0.18)  # frame widths
    phase = random.uniform(0, 2 * np.pi)
    share = random.random()
    slant = random.uniform(-1, 1)
    sense = random.choice((-1.0, 1.0))
    rocking, breathing = random.uniform(0, 0.1), random.uniform(0, 0.04)
    second = random.uniform(0.5, 1.2) * frequency

    turn = 2 * np.pi * frequency * times + phase
    wobble = np.sin(2 * np.pi * second * times + 2.4 * phase)
    along, across = np.zeros_like(times), np.zeros_like(times)
    direction = 0.0  # of `along`, in radians from the horizontal
    scale = 1 + breathing * wobble
    angle = rocking * wobble

    if action in ("swing", "circle"):
        # The flattest circles are close to the roundest swings.
        roundness = 0.2 * share if action == "swing" else 0.5 + 0.5 * share
        along = amplitude * np.sin(turn)
        across = amplitude * np.cos(turn) * (roundness * sense)
        direction = math.radians(15) * slant
    elif action == "bounce":
        # Parabolic hops: slow at the top, a sudden turn at the bottom.
        along = 2 * amplitude * (np.abs(np.sin(turn / 2)) - 0.6)
        direction = -math.pi / 2 + math.radians(14) * slant
    elif action == "zigzag":
        along = amplitude * (2 / np.pi) * np.arcsin(np.sin(turn))
        direction = sense * math.radians(45 + 12 * slant)
    elif action == "pulse":
        scale = scale * (1 + (0.18 + 0.2 * share) * np.sin(turn))
    elif action == "spin":
        angle = angle + sense * 2 * np.pi * (0.35 + 0.5 * share) * times

    cos, sin = math.cos(direction), math.sin(direction)
    return Pose(
        x=along * cos - across * sin,
        y=along * sin + across * cos,
        scale=scale,
        angle=angle,
    )


def outline(kind: int) -> np.ndarray:
    """Closed curve of shape 0 (a circle) to 4, (N, 2), inside the unit circle."""
    corners = {
        0: [(1.0, a) for a in np.linspace(0, 2 * np.pi, 36, endpoint=False)],
        1: [(1.0, math.pi / 4 + k * math.pi / 2) for k in range(4)],
        2: [(1.0, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)],
        3: [(1.0 if k % 2 else 0.5, k * math.pi / 5) for k in range(10)],
        4: [(1.0 - 0.35 * (k % 2), k * math.pi / 4) for k in range(8)],
    }[kind]
    return np.array([(r * math.cos(a), r * math.sin(a)) for r, a in corners])


def track(action: str, random: Generator, side: int, radius: float) -> list[np.ndarray]:
    """The apparatus of an action: what a single frame can show of it.

    A rail, pole or ring along the path; two rings that a pulse reaches; the cross of
    an axle. Its geometry is the same in all domains.

    Args:
        action: Whose.
        random: The clip's motion, for the very path of the object.
        side: Pixels of a frame.
        radius: Of the object, in pixels.

    Returns:
        Curves about the clip's centre point, each (N, 2) in pixels. Rings are closed.
    """
    if action == "spin":
        angle = random.uniform(0, np.pi)
        arm = 1.9 * radius * np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-arm[1], arm[0]])
        return [np.stack([-arm, arm]), np.stack([-across, across])]
    if action == "pulse":
        circle = radius * outline(0)
        return [1.25 * circle, 1.75 * circle]
    curve = side * action_pose(action, random, np.linspace(0, 2, 256)).path()
    reach = np.linalg.norm(curve, axis=1).max()
    return [curve * (reach + 1.2 * radius) / reach]  # seen beyond the object


def camera_shake(frames: int, side: int, random: Generator) -> np.ndarray:
    """Displacement of a hand-held camera's picture in pixels, (T, 2)."""
    steps = np.cumsum(random.normal(0, 1, (frames + 8, 2)), axis=0)
    smooth = signal.lfilter([0.35], [1, -0.65], steps, axis=0)[8:]
    smooth -= np.linspace(0, 1, frames)[:, None] * (smooth[-1] - smooth[0])
    smooth -= smooth.mean(0)
    return smooth * (side * 0.008 / max(smooth.std(), 1e-6))


def passing(frames: int, side: int, random: Generator) -> np.ndarray | None:
    """Way of what crosses half of the scenes at constant speed, (T, 2) in pixels."""
    height, share, sense = random.uniform(0.1, 0.9), random.random(), random.random()
    x = np.linspace(-0.1, 1.1, frames) * side
    x = x if sense < 0.5 else x[::-1]
    way = np.stack([x, np.full(frames, height * side)], axis=1)
    return way if share >= 0.5 else None
