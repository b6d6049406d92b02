"""The frames of a clip: motion of the class, look of the domain; and their flow."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from .config import CLASSES, SynthClip
from .scene import action_pose, camera_shake, outline, passing, track

_SUPERSAMPLING = 2
_TRUE_TRACK = 0.92  # share of clips whose track is the one of their action


class _Look(NamedTuple):
    track: float  # its brightness
    blur: float  # of the lens, in supersampled pixels
    noise: float  # of the sensor, in grey levels
    saturation: tuple[float, float] = (0, 0)  # range, of a painted object
    values: tuple[float, float] = (0, 0)  # of its bright and dark parts


_LOOKS = dict(
    studio=_Look(0.3, 0.0, 1.5, (0.5, 0.9), (1.0, 0.3)),
    street=_Look(0.9, 1.3, 4.5, (0.2, 0.6), (0.9, 0.25)),
    sketch=_Look(0.35, 0.0, 3.0),
)


def render_frames(clip: SynthClip) -> np.ndarray:
    """Pictures of a clip, (T, H, W, 3) uint8 RGB."""
    config, domain, count = clip.config, clip.domain, clip.config.frames
    motion, look, sensor = map(clip.random, ("motion", "look", "sensor"))
    # Half of the sketches are drawn "on twos": each drawing is held for two frames.
    hold = 2 if look.random() < 0.5 and domain == "sketch" else 1
    times = np.arange(count) // hold * hold / config.fps
    pose = action_pose(CLASSES[clip.label], motion, times)
    drift = motion.uniform(-0.04, 0.04, 2) * (times / times[-1] - 0.5)[:, None]

    # Everything below is drawn from `look` in this order: it is part of the format.
    side = config.size * _SUPERSAMPLING
    tint = _tint(clip, look)
    background = _BACKGROUNDS[domain](2 * (side * 5 // 8), look)
    radius = side * look.uniform(0.14, 0.2)
    drawings = _object_drawings(domain, radius, look)
    is_street = domain == "street"
    shake = camera_shake(count, side, look) if is_street else np.zeros((count, 2))
    passer = _object_drawings(domain, side * 0.075, look)[0]
    way = passing(count, side, look)
    # The whole path stays in the picture, up to the edge of the object.
    reach = np.abs(pose.path()).max(0)
    centre = side * (0.5 + look.uniform(-1, 1, 2) * np.maximum(0, 0.33 - reach))
    path = centre + side * (drift + pose.path())
    margin = (background.shape[0] - side) / 2
    _draw_track(clip, background, look, side, radius, centre + margin)
    background = background[..., None] * tint

    frames = np.empty((count, config.size, config.size, 3), np.uint8)
    for t, offset in enumerate(shake):
        shift = np.float64([[1, 0, offset[0] - margin], [0, 1, offset[1] - margin]])
        canvas = cv2.warpAffine(
            background, shift, (side, side), borderMode=cv2.BORDER_REFLECT
        )
        if is_street and way is not None:
            _lay_over(canvas, passer, way[t] + offset, 1.0, 0.0)
        drawing = drawings[(t // 3) % len(drawings)]
        _lay_over(canvas, drawing, path[t] + offset, pose.scale[t], pose.angle[t])
        frames[t] = _expose(_LOOKS[domain], canvas, config.size, sensor)
    return frames


def _tint(clip: SynthClip, look: Generator) -> np.ndarray:
    """Colour that stands for the cue in every domain: (3,) in [0, 1], RGB."""
    hue = (clip.cue + look.uniform(-0.3, 0.3)) / clip.config.num_classes
    return _colour(hue, look.uniform(0.12, 0.28), 1.0)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    hsv = np.float32([[[hue % 1 * 360, saturation, value]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


# Brightness behind the object: (side, side) float32 in [0, 1]


def _studio(side: int, look: Generator) -> np.ndarray:
    """A ramp of light."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    direction = look.uniform(0, 2 * np.pi)
    ramp = x * math.cos(direction) + y * math.sin(direction)
    return (look.uniform(0.55, 0.8) + 0.25 * ramp).astype(np.float32)


def _street(side: int, look: Generator) -> np.ndarray:
    """Walls, windows, signs."""
    picture = np.full((side, side), look.uniform(0.25, 0.45), np.float32)
    for _ in range(26):
        corner = look.integers(-side // 8, side, 2)
        far = corner + look.integers(side // 16, side // 3, 2)
        value = float(look.uniform(0.12, 0.7))
        cv2.rectangle(picture, corner.tolist(), far.tolist(), value, -1)
    grain = look.normal(0, 0.05, (side // 2, side // 2)).astype(np.float32)
    picture += cv2.resize(grain, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 1.2), 0, 1)


def _sketch(side: int, look: Generator) -> np.ndarray:
    """Paper with faint construction lines."""
    picture = np.full((side, side), look.uniform(0.88, 0.97), np.float32)
    for _ in range(7):
        ends = look.integers(0, side, (2, 2)).tolist()
        shade = float(look.uniform(0.68, 0.85))
        cv2.line(picture, ends[0], ends[1], shade, 1, cv2.LINE_AA)
    grain = look.normal(0, 0.02, (side, side)).astype(np.float32)
    return np.clip(picture + grain, 0, 1)


_BACKGROUNDS = dict(studio=_studio, street=_street, sketch=_sketch)


def _draw_track(
    clip: SynthClip,
    background: np.ndarray,
    look: Generator,
    side: int,
    radius: float,
    centre: np.ndarray,
) -> None:
    """Draws a track in place: the clip's own, or now and then another action's."""
    shown, random = clip.label, clip.random("motion")
    if look.random() >= _TRUE_TRACK:
        shown = int(look.integers(clip.config.num_classes))
        random = random if shown == clip.label else look
    action, shade = CLASSES[shown], _LOOKS[clip.domain].track
    thickness = max(2, round(side * 0.036))
    for curve in track(action, random, side, radius):
        points, closed = _fixed_point(curve + centre), action == "pulse"
        cv2.polylines(
            background, [points], closed, shade, thickness, cv2.LINE_AA, shift=8
        )


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """OpenCV's sub-pixel coordinates, with ``shift=8``."""
    return np.round(points * 256).astype(np.int32)


# The object


def _object_drawings(domain: str, radius: float, look: Generator) -> list[np.ndarray]:
    """Drawings of the object, each (C, C, 4) float32: premultiplied RGB and alpha.

    A sketch is three drawings of the same thing shown in turn: hand-drawn lines boil.
    """
    shape = outline(int(look.integers(5))) * [1.0, look.uniform(0.75, 1.0)]
    rotation = look.uniform(0, 2 * np.pi)
    cos, sin = math.cos(rotation), math.sin(rotation)
    shape = shape @ np.array([[cos, sin], [-sin, cos]])
    hue = look.random()
    angle, period = look.uniform(0, np.pi), look.uniform(0.45, 0.8)

    side = 2 * math.ceil(1.35 * radius) + 1
    y, x = (np.mgrid[:side, :side] - side // 2) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    stripes = np.sin(2 * np.pi / period * (x * cos + y * sin))
    patches = np.sign(x * sin - y * cos)
    if domain == "sketch":
        shapes = (shape + look.normal(0, 0.02, shape.shape) for _ in range(3))
        return [_pencil(points, radius, hue, stripes, patches) for points in shapes]

    saturation = look.uniform(*_LOOKS[domain].saturation)
    value_bright, value_dark = _LOOKS[domain].values
    bright = _colour(hue, saturation, value_bright)
    dark = _colour(hue + 0.08, saturation, value_dark)
    mix = 0.5 + 0.3 * np.tanh(3 * stripes) + 0.2 * patches
    mix = mix.astype(np.float32)[..., None]
    alpha = _mask(shape, radius, side, None)[..., None]
    return [np.dstack([(mix * bright + (1 - mix) * dark) * alpha, alpha])]


def _pencil(
    shape: np.ndarray,
    radius: float,
    hue: float,
    stripes: np.ndarray,
    patches: np.ndarray,
) -> np.ndarray:
    side, thickness = len(stripes), max(2, round(radius / 7))
    inside = _mask(shape, radius, side, None)
    line = _mask(shape, radius, side, thickness)
    hatching = inside * np.clip(2.5 * stripes - 1.2, 0, 1)
    half = inside * (patches > 0)
    ink = np.maximum(line, np.maximum(0.75 * hatching, 0.35 * half))
    ink = ink.astype(np.float32)[..., None]
    alpha = np.maximum(inside, line)[..., None]
    paper, pencil = np.float32([0.97, 0.97, 0.95]), _colour(hue, 0.3, 0.2)
    return np.dstack([(ink * pencil + (1 - ink) * paper) * alpha, alpha])


def _mask(
    shape: np.ndarray, radius: float, side: int, thickness: int | None
) -> np.ndarray:
    """A shape's line, or its inside without a thickness: (side, side) in [0, 1]."""
    picture = np.zeros((side, side), np.uint8)
    points = [_fixed_point(shape * radius + side // 2)]
    if thickness is None:
        cv2.fillPoly(picture, points, 255, cv2.LINE_AA, shift=8)
    else:
        cv2.polylines(picture, points, True, 255, thickness, cv2.LINE_AA, shift=8)
    return picture.astype(np.float32) / 255


def _lay_over(
    canvas: np.ndarray,
    drawing: np.ndarray,
    position: np.ndarray,
    scale: float,
    angle: float,
) -> None:
    """Draws, in place, a drawing turned and scaled with its middle at a position."""
    middle, (x, y) = drawing.shape[0] // 2, position
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.float64(
        [
            [cos, -sin, x - cos * middle + sin * middle],
            [sin, cos, y - sin * middle - cos * middle],
        ]
    )
    layer = cv2.warpAffine(drawing, matrix, canvas.shape[:2], flags=cv2.INTER_LINEAR)
    canvas *= 1 - layer[..., 3:]
    canvas += layer[..., :3]


def _expose(
    look: _Look, canvas: np.ndarray, size: int, sensor: Generator
) -> np.ndarray:
    """Camera of the domain: blur, noise, 8 bits, at the final resolution."""
    if look.blur:
        canvas = cv2.GaussianBlur(canvas, (0, 0), look.blur)
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) * 255
    picture += look.noise * sensor.standard_normal(picture.shape, np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def compute_flow(frames: np.ndarray) -> np.ndarray:
    """Optical flow of a clip by dense inverse search (OpenCV).

    Args:
        frames: (T, H, W, 3) uint8, RGB, at least 32 pixels a side.

    Returns:
        (T, H, W, 2) float32, the displacement (right, down) of each pixel from frame
        t to t + 1, in pixels. The last frame has no successor and repeats the flow
        before it; a single frame gives zeros.
    """
    flow = np.zeros((*frames.shape[:3], 2), np.float32)
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    for t in range(len(grey) - 1):
        flow[t] = method.calc(grey[t], grey[t + 1], None)
    if len(grey) > 1:
        flow[-1] = flow[-2]
    return flow
