"""A synthetic multi-modal action data set: encoded video, flow and sound.

No real data set of this field can be fetched in a test or a tutorial, so this
module makes a small one with the same difficulties. A class is an *action*: a way
in which an object moves and a sound that goes with it. A domain is a way of
rendering both::

    draw_cue      which background tint a clip gets (the spurious shortcut)
    render_frames motion of the class + look of the domain -> RGB frames
    compute_flow  optical flow of those frames, by OpenCV
    render_audio  sound of the class + acoustics of the domain + disturbances
    generate      encodes every clip in HAC's folder layout

Two knobs set what a learner meets. ``spurious`` ties the background tint to the label
in the source domains and leaves it random in the target: it is the first thing that a
video network learns and is worth nothing in the target. Flow does not see it.
``audio_difficulty`` lowers the signal-to-noise ratio and raises distractors: short
pieces of the sounds of other classes.

Neither view settles every clip. The classes form pairs that resemble each other in
motion (swing / flat circle, slanted bounce / steep zigzag, pulse / spin of a round
shape) and other pairs that resemble each other in sound (swing / pulse, bounce /
circle, spin / zigzag). No pair occurs in both lists, so fusion helps.

A single frame shows the class through the cue and through the apparatus behind the
object (a rail, a ring, an axle), which in one clip of fifteen
belongs to another action. Every action stays itself under a left-right flip.

The random numbers of a clip derive from (seed, domain, split, index) alone. Files are
byte-identical for any number of workers; other versions of FFmpeg, OpenCV or numpy may
give other bytes.
"""

import dataclasses
import json
import math
import multiprocessing
import numbers
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import soundfile
from numpy.random import Generator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from scipy import signal

CLASSES: tuple[str, ...] = ("swing", "bounce", "circle", "pulse", "spin", "zigzag")
"""Actions by label. A smaller data set uses the first ``num_classes`` of them."""

DOMAINS: tuple[str, ...] = ("studio", "street", "sketch")
"""Renderings. The position in this tuple enters the seeds: append, never reorder."""

SPLITS: tuple[str, ...] = ("train", "test")

GENERATOR_VERSION = 1
"""Raise it with every change that alters a file made from the same parameters."""

META_FILE = "synth.json"
SPLIT_FOLDER = "Synth_Splits"
_PARTIAL_FILE = "synth.partial.json"

_SUPERSAMPLING = 2
_TRUE_TRACK = 0.92  # share of clips whose track is the one of their action
_CHUNK = 4  # clips per task: small enough that both workers end together


# --------------------------------------------------------------------------------
# Parameters


@dataclass(frozen=True)
class SynthConfig:
    """What to generate.

    Args:
        seed: Any integer from 0.
        domains: Domains to render, a non-repeating choice from :data:`DOMAINS`.
        target: The domain, or several, in which the tint says nothing about the
            label. At least one domain must remain as a source.
        num_classes: 2 to 6, the first ones of :data:`CLASSES`.
        train_per_class: Clips per class and domain in the train split.
        test_per_class: Clips per class and domain in the test split.
        size: Width and height of a frame in pixels, even, from 32.
        frames: Frames of a clip, from 4. The clip lasts ``frames / fps`` seconds, at
            least half a second.
        fps: Frames per second, an integer.
        sample_rate: Audio samples per second, from 8000.
        spurious: Probability in [0, 1] that the tint of a source clip is the one of
            its label. Otherwise (and always in the target) the tint is drawn
            uniformly from all classes, so the tint agrees with the label in
            ``spurious + (1 - spurious) / num_classes`` of the source clips.
        audio_difficulty: In [0, 1]. The mean signal-to-noise ratio falls from 20 dB
            at 0 to -12 dB at 1; distractors grow from none to louder than the event.
        missing_audio: Fraction in [0, 1] of the clips of each domain and split that
            get no wav file (rounded to whole clips).
        flow_bound: Flow beyond this many pixels per frame is clipped before it is
            mapped to 8 bits.
    """

    seed: int = 0
    domains: tuple[str, ...] = DOMAINS
    target: str | tuple[str, ...] = "sketch"
    num_classes: int = 6
    train_per_class: int = 20
    test_per_class: int = 10
    size: int = 64
    frames: int = 32
    fps: int = 16
    sample_rate: int = 16000
    spurious: float = 0.8
    audio_difficulty: float = 0.5
    missing_audio: float = 0.0
    flow_bound: float = 8.0

    def __post_init__(self) -> None:
        # A list, as JSON and command lines give it, should equal the tuple.
        for name in ("domains", "target"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def targets(self) -> tuple[str, ...]:
        """The target domains, also where ``target`` names a single one."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def classes(self) -> tuple[str, ...]:
        """The actions by label."""
        return CLASSES[: self.num_classes]

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.fps

    def clips_per_split(self, split: str) -> int:
        """Number of clips of one domain in ``split``."""
        per_class = {"train": self.train_per_class, "test": self.test_per_class}
        return per_class[split] * self.num_classes

    def validate(self) -> "SynthConfig":
        """Check every value.

        Returns:
            The config itself.

        Raises:
            ValueError: One error that lists every key with a wrong value, what
                arrived and what would work.
        """
        problems = list(self._problems())
        if problems:
            raise ValueError(
                "cannot generate this data set:\n  " + "\n  ".join(problems)
            )
        return self

    def _problems(self) -> Iterator[str]:
        wrong = set()
        for key, low, high in (
            ("seed", 0, None),
            ("num_classes", 2, len(CLASSES)),
            ("train_per_class", 1, None),
            ("test_per_class", 1, None),
            ("size", 32, None),
            ("frames", 4, None),
            ("fps", 1, None),
            ("sample_rate", 8000, None),
        ):
            value = getattr(self, key)
            is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not is_int or value < low or (high is not None and value > high):
                wrong.add(key)
                allowed = f"from {low}" + ("" if high is None else f" to {high}")
                yield f"{key}: got {value!r}, needs an integer {allowed}"
        if "size" not in wrong and self.size % 2:
            yield (
                f"size: got {self.size}, needs an even number (h264 halves the colour "
                f"planes), such as {self.size + 1}"
            )
        if not wrong & {"frames", "fps"} and self.seconds < 0.5:
            yield (
                f"frames: got {self.frames} at {self.fps} fps = {self.seconds:.2f} s, "
                f"needs at least half a second: {math.ceil(self.fps / 2)} frames"
            )
        for key in ("spurious", "audio_difficulty", "missing_audio"):
            value = getattr(self, key)
            if not _is_real(value) or not 0 <= value <= 1:
                yield f"{key}: got {value!r}, needs a number from 0 to 1"
        if not _is_real(self.flow_bound) or not 0 < self.flow_bound < math.inf:
            yield (
                f"flow_bound: got {self.flow_bound!r}, needs a positive number of "
                "pixels per frame"
            )
        choice = f"a non-repeating choice from {list(DOMAINS)}"
        if not _is_choice(self.domains, DOMAINS):
            yield f"domains: got {self.domains!r}, needs {choice}"
        elif not _is_choice(self.targets, self.domains):
            yield (
                f"target: got {self.target!r}, needs one of the domains "
                f"{list(self.domains)}, or several as a tuple"
            )
        elif len(self.targets) == len(self.domains):
            yield (
                f"target: got {self.target!r}, which leaves no source among the "
                f"domains {list(self.domains)}; name fewer targets or more domains"
            )


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_choice(values: object, allowed: tuple[str, ...]) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(value, str) and value in allowed for value in values)
        and len(set(values)) == len(values)
    )


# --------------------------------------------------------------------------------
# What a clip is, apart from its pixels and samples


class Clip(NamedTuple):
    """One rendered clip.

    Attributes:
        name: File name without suffix, such as ``circle_0003``.
        label: Index into :data:`CLASSES`.
        cue: The class whose tint the background has.
        frames: (T, H, W, 3) uint8, RGB.
        waveform: (S,) float32 in [-1, 1], of the same length in seconds. Rendered
            also where ``has_audio`` is false.
        has_audio: Whether a wav file is written.
        snr_db: Power of the event over that of the noise, in dB.
    """

    name: str
    label: int
    cue: int
    frames: np.ndarray
    waveform: np.ndarray
    has_audio: bool
    snr_db: float


def clip_label(config: SynthConfig, index: int) -> int:
    """Label of clip ``index`` of any domain and split: classes take turns."""
    return index % config.num_classes


def clip_name(config: SynthConfig, split: str, index: int) -> str:
    """File name without suffix. The numbers of test go on where train ends."""
    number = index // config.num_classes
    if split == "test":
        number += config.train_per_class
    return f"{CLASSES[clip_label(config, index)]}_{number:04d}"


def clip_random(
    config: SynthConfig, domain: str, split: str, index: int, stream: int
) -> Generator:
    """The random numbers of one aspect of one clip.

    Aspects have streams of their own so that a knob changes what it names and
    nothing else: the motion of a clip is the same at every ``spurious``.
    """
    place = (DOMAINS.index(domain), SPLITS.index(split), index)
    return np.random.default_rng(
        np.random.SeedSequence([GENERATOR_VERSION, int(config.seed), *place, stream])
    )


_CUE, _MOTION, _LOOK, _SENSOR, _EVENT, _DISTRACTOR, _NOISE = range(7)


def draw_cue(config: SynthConfig, domain: str, split: str, index: int) -> int:
    """The class whose tint the background of a clip shows, see ``spurious``."""
    random = clip_random(config, domain, split, index, _CUE)
    follows = random.random() < config.spurious
    drawn = int(random.integers(config.num_classes))
    if follows and domain not in config.targets:
        return clip_label(config, index)
    return drawn


def clips_without_audio(config: SynthConfig, domain: str, split: str) -> frozenset[int]:
    """Indices of the clips of a domain and split that get no wav file."""
    count = config.clips_per_split(split)
    place = (DOMAINS.index(domain), SPLITS.index(split))
    # Domain + 1000 keeps this sequence apart from those of the clips.
    random = np.random.default_rng(
        [GENERATOR_VERSION, int(config.seed), 1000 + place[0], place[1]]
    )
    missing = round(config.missing_audio * count)
    return frozenset(random.permutation(count)[:missing].tolist())


def render_clip(config: SynthConfig, domain: str, split: str, index: int) -> Clip:
    """Render one clip.

    Args:
        config: A valid config.
        domain: One of ``config.domains``.
        split: ``'train'`` or ``'test'``.
        index: From 0 to ``config.clips_per_split(split) - 1``.
    """
    sound = render_audio(config, domain, split, index)
    return Clip(
        name=clip_name(config, split, index),
        label=clip_label(config, index),
        cue=draw_cue(config, domain, split, index),
        frames=render_frames(config, domain, split, index),
        waveform=sound.mix(),
        has_audio=index not in clips_without_audio(config, domain, split),
        snr_db=sound.snr_db,
    )


# --------------------------------------------------------------------------------
# Motion


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

    if action == "swing":
        along, across = amplitude * np.sin(turn), amplitude * np.cos(turn)
        across *= 0.2 * share * sense
        direction = math.radians(15) * slant
    elif action == "circle":
        # The flattest of these are close to the roundest swings.
        along, across = amplitude * np.sin(turn), amplitude * np.cos(turn)
        across *= (0.5 + 0.5 * share) * sense
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
    else:
        raise ValueError(f"got action {action!r}, needs one of {list(CLASSES)}")

    cos, sin = math.cos(direction), math.sin(direction)
    return Pose(
        x=along * cos - across * sin,
        y=along * sin + across * cos,
        scale=scale,
        angle=angle,
    )


# --------------------------------------------------------------------------------
# Looks


def render_frames(
    config: SynthConfig, domain: str, split: str, index: int
) -> np.ndarray:
    """Pictures of a clip, (T, H, W, 3) uint8 RGB."""
    motion = clip_random(config, domain, split, index, _MOTION)
    look = clip_random(config, domain, split, index, _LOOK)
    sensor = clip_random(config, domain, split, index, _SENSOR)
    label, count = clip_label(config, index), config.frames
    # Half of the sketches are drawn "on twos": each drawing is held for two frames.
    hold = 2 if look.random() < 0.5 and domain == "sketch" else 1
    times = np.arange(count) // hold * hold / config.fps
    pose = action_pose(CLASSES[label], motion, times)
    drift = motion.uniform(-0.04, 0.04, 2) * (times / times[-1] - 0.5)[:, None]

    side = config.size * _SUPERSAMPLING
    tint = _tint(config, draw_cue(config, domain, split, index), look)
    background = _background(domain, 2 * (side * 5 // 8), look)
    radius = side * look.uniform(0.14, 0.2)
    shapes = _object_pictures(domain, radius, look)
    shake = _camera_shake(domain, count, side, look)
    passer = _passer_by(domain, count, side, look)

    # The whole path stays in the picture, up to the edge of the object.
    reach = np.array([np.abs(pose.x).max(), np.abs(pose.y).max()])
    centre = side * (0.5 + look.uniform(-1, 1, 2) * np.maximum(0, 0.33 - reach))
    path = centre + side * (drift + np.stack([pose.x, pose.y], axis=1))
    margin = (background.shape[0] - side) / 2
    shown = label
    if look.random() >= _TRUE_TRACK:
        shown = int(look.integers(config.num_classes))
    # The track of its own action follows the very path of the object.
    seen = (
        clip_random(config, domain, split, index, _MOTION) if shown == label else look
    )
    action = CLASSES[shown]
    _draw_track(domain, background, action, seen, side, radius, centre + margin)
    background = background[..., None] * tint

    frames = np.empty((count, config.size, config.size, 3), np.uint8)
    for t, offset in enumerate(shake):
        shift = np.float64([[1, 0, offset[0] - margin], [0, 1, offset[1] - margin]])
        canvas = cv2.warpAffine(
            background, shift, (side, side), borderMode=cv2.BORDER_REFLECT
        )
        if passer is not None:
            place = passer.centres[t] + offset
            _lay_over(canvas, _place(passer.picture, side, *place, 1.0, 0.0))
        layer = _place(
            shapes[(t // 3) % len(shapes)],
            side,
            *(path[t] + offset),
            pose.scale[t],
            pose.angle[t],
        )
        _lay_over(canvas, layer)
        frames[t] = _expose(domain, canvas, config.size, sensor)
    return frames


def _tint(config: SynthConfig, cue: int, look: Generator) -> np.ndarray:
    """Colour that stands for class ``cue`` in every domain: (3,) in [0, 1], RGB."""
    hue = (cue + look.uniform(-0.3, 0.3)) / config.num_classes
    return _colour(hue, look.uniform(0.12, 0.28), 1.0)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    hsv = np.float32([[[hue % 1 * 360, saturation, value]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _background(domain: str, side: int, look: Generator) -> np.ndarray:
    """Brightness behind the object, (side, side) float32 in [0, 1]."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    if domain == "studio":
        direction = look.uniform(0, 2 * np.pi)
        ramp = x * math.cos(direction) + y * math.sin(direction)
        return (look.uniform(0.55, 0.8) + 0.25 * ramp).astype(np.float32)
    if domain == "street":
        picture = np.full((side, side), look.uniform(0.25, 0.45), np.float32)
        for _ in range(26):  # walls, windows, signs
            corner = look.integers(-side // 8, side, 2)
            extent = look.integers(side // 16, side // 3, 2)
            far = corner + extent
            value = float(look.uniform(0.12, 0.7))
            cv2.rectangle(picture, corner.tolist(), far.tolist(), value, -1)
        grain = look.normal(0, 0.05, (side // 2, side // 2)).astype(np.float32)
        picture += cv2.resize(grain, (side, side), interpolation=cv2.INTER_LINEAR)
        return np.clip(cv2.GaussianBlur(picture, (0, 0), 1.2), 0, 1)
    # sketch: paper with faint construction lines
    picture = np.full((side, side), look.uniform(0.88, 0.97), np.float32)
    for _ in range(7):
        ends = look.integers(0, side, (2, 2)).tolist()
        shade = float(look.uniform(0.68, 0.85))
        cv2.line(picture, ends[0], ends[1], shade, 1, cv2.LINE_AA)
    grain = look.normal(0, 0.02, (side, side)).astype(np.float32)
    return np.clip(picture + grain, 0, 1)


def _draw_track(
    domain: str,
    background: np.ndarray,
    action: str,
    motion: Generator,
    side: int,
    radius: float,
    centre: np.ndarray,
) -> None:
    """Draw, in place, the apparatus of an action: what a single frame can show of it.

    A rail, pole or ring along the path; two rings that a pulse reaches; the cross of
    an axle. Its geometry is the same in all domains.
    """
    if action == "spin":
        angle = motion.uniform(0, np.pi)
        arm = 1.9 * radius * np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-arm[1], arm[0]])
        curves = [np.stack([-arm, arm]), np.stack([-across, across])]
    elif action == "pulse":
        circle = radius * _outline(0)
        curves = [1.25 * circle, 1.75 * circle]
    else:
        pose = action_pose(action, motion, np.linspace(0, 2, 256))
        curve = side * np.stack([pose.x, pose.y], axis=1)
        reach = np.linalg.norm(curve, axis=1).max()
        curves = [curve * (reach + 1.2 * radius) / reach]  # seen beyond the object
    shade = {"studio": 0.3, "street": 0.9, "sketch": 0.35}[domain]
    for curve in curves:
        points = np.round((curve + centre) * 256).astype(np.int32)
        thickness = max(2, round(side * 0.036))
        closed = action == "pulse"
        cv2.polylines(
            background, [points], closed, shade, thickness, cv2.LINE_AA, shift=8
        )


def _outline(kind: int) -> np.ndarray:
    """Closed curve of a shape, (N, 2), inside the unit circle."""
    corners = {
        0: [(1.0, a) for a in np.linspace(0, 2 * np.pi, 36, endpoint=False)],
        1: [(1.0, math.pi / 4 + k * math.pi / 2) for k in range(4)],
        2: [(1.0, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)],
        3: [(1.0 if k % 2 else 0.5, k * math.pi / 5) for k in range(10)],
        4: [(1.0 - 0.35 * (k % 2), k * math.pi / 4) for k in range(8)],
    }[kind]
    return np.array([(r * math.cos(a), r * math.sin(a)) for r, a in corners])


def _object_pictures(domain: str, radius: float, look: Generator) -> list[np.ndarray]:
    """Drawings of the object, each (C, C, 4) float32: premultiplied RGB and alpha.

    A sketch is three drawings of the same thing shown in turn: hand-drawn lines boil.
    """
    outline = _outline(int(look.integers(5))) * [1.0, look.uniform(0.75, 1.0)]
    rotation = look.uniform(0, 2 * np.pi)
    turned = outline @ np.array(
        [
            [math.cos(rotation), math.sin(rotation)],
            [-math.sin(rotation), math.cos(rotation)],
        ]
    )
    hue = look.random()
    pattern_angle, pattern_period = look.uniform(0, np.pi), look.uniform(0.45, 0.8)
    side = 2 * math.ceil(1.35 * radius) + 1
    middle = side // 2

    y, x = (np.mgrid[:side, :side] - middle) / radius
    stripes = np.sin(
        2
        * np.pi
        / pattern_period
        * (x * math.cos(pattern_angle) + y * math.sin(pattern_angle))
    )
    patches = np.sign(x * math.sin(pattern_angle) - y * math.cos(pattern_angle))

    def draw(points: np.ndarray, thickness: int) -> np.ndarray:
        picture = np.zeros((side, side), np.uint8)
        fixed = np.round((points * radius + middle) * 256).astype(np.int32)
        if thickness < 0:
            cv2.fillPoly(picture, [fixed], 255, cv2.LINE_AA, shift=8)
        else:
            cv2.polylines(picture, [fixed], True, 255, thickness, cv2.LINE_AA, shift=8)
        return picture.astype(np.float32) / 255

    if domain != "sketch":
        strong = domain == "studio"
        saturation = look.uniform(0.5, 0.9) if strong else look.uniform(0.2, 0.6)
        bright = _colour(hue, saturation, 1.0 if strong else 0.9)
        dark = _colour(hue + 0.08, saturation, 0.3 if strong else 0.25)
        mix = 0.5 + 0.3 * np.tanh(3 * stripes) + 0.2 * patches
        mix = mix.astype(np.float32)[..., None]
        alpha = draw(turned, -1)[..., None]
        return [np.dstack([(mix * bright + (1 - mix) * dark) * alpha, alpha])]

    thickness = max(2, round(radius / 7))
    pictures = []
    for _ in range(3):
        points = turned + look.normal(0, 0.02, turned.shape)
        inside, line = draw(points, -1), draw(points, thickness)
        hatching = inside * np.clip(2.5 * stripes - 1.2, 0, 1)
        half = inside * (patches > 0)
        ink = np.maximum(line, np.maximum(0.75 * hatching, 0.35 * half))
        ink = ink.astype(np.float32)[..., None]
        alpha = np.maximum(inside, line)[..., None]
        paper = np.float32([0.97, 0.97, 0.95])
        pencil = _colour(hue, 0.3, 0.2)
        pictures.append(np.dstack([(ink * pencil + (1 - ink) * paper) * alpha, alpha]))
    return pictures


def _camera_shake(domain: str, frames: int, side: int, look: Generator) -> np.ndarray:
    """Displacement of the picture in supersampled pixels, (T, 2)."""
    if domain != "street":
        return np.zeros((frames, 2))
    steps = np.cumsum(look.normal(0, 1, (frames + 8, 2)), axis=0)
    smooth = signal.lfilter([0.35], [1, -0.65], steps, axis=0)[8:]
    smooth -= np.linspace(0, 1, frames)[:, None] * (smooth[-1] - smooth[0])
    smooth -= smooth.mean(0)
    return smooth * (side * 0.008 / max(smooth.std(), 1e-6))


class _PasserBy(NamedTuple):
    picture: np.ndarray
    centres: np.ndarray


def _passer_by(
    domain: str, frames: int, side: int, look: Generator
) -> _PasserBy | None:
    """Something else that crosses half of the street scenes at constant speed."""
    picture = _object_pictures(domain, side * 0.075, look)[0]
    height, share, sense = look.uniform(0.1, 0.9), look.random(), look.random()
    if domain != "street" or share < 0.5:
        return None
    x = np.linspace(-0.1, 1.1, frames) * side
    x = x if sense < 0.5 else x[::-1]
    return _PasserBy(picture, np.stack([x, np.full(frames, height * side)], axis=1))


def _place(
    picture: np.ndarray, side: int, x: float, y: float, scale: float, angle: float
) -> np.ndarray:
    """A premultiplied picture turned and scaled with its middle at (x, y) of a layer.

    Returns:
        (side, side, 4) float32.
    """
    middle = picture.shape[0] // 2
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    matrix = np.float64(
        [
            [cos, -sin, x - cos * middle + sin * middle],
            [sin, cos, y - sin * middle - cos * middle],
        ]
    )
    return cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR)


def _lay_over(canvas: np.ndarray, layer: np.ndarray) -> None:
    """Draw a premultiplied RGBA layer over RGB, in place."""
    canvas *= 1 - layer[..., 3:]
    canvas += layer[..., :3]


def _expose(
    domain: str, canvas: np.ndarray, size: int, sensor: Generator
) -> np.ndarray:
    """Camera of the domain: blur, noise, 8 bits, at the final resolution."""
    if domain == "street":
        canvas = cv2.GaussianBlur(canvas, (0, 0), 1.3)
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) * 255
    noise = {"studio": 1.5, "street": 4.5, "sketch": 3.0}[domain]
    picture += noise * sensor.standard_normal(picture.shape, np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------
# Flow


def compute_flow(frames: np.ndarray) -> np.ndarray:
    """Optical flow of a clip by dense inverse search (OpenCV).

    Args:
        frames: (T, H, W, 3) uint8, RGB, at least 32 pixels a side.

    Returns:
        (T, H, W, 2) float32, the displacement (right, down) of each pixel from frame
        t to t + 1, in pixels. The last frame has no successor and repeats the flow
        before it; a single frame gives zeros.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"flow needs frames of shape (T, H, W, 3) and type uint8; got "
            f"{frames.shape} and {frames.dtype}"
        )
    flow = np.zeros((*frames.shape[:3], 2), np.float32)
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    for t in range(len(gray) - 1):
        flow[t] = method.calc(gray[t], gray[t + 1], None)
    if len(gray) > 1:
        flow[-1] = flow[-2]
    return flow


def quantize_flow(flow: np.ndarray, bound: float) -> np.ndarray:
    """Flow as 8 bits: -bound, 0, +bound pixels become 1, 128, 255.

    Args:
        flow: Any shape, pixels per frame.
        bound: Positive; larger displacements are clipped.

    Returns:
        uint8 of the same shape.
    """
    if not bound > 0:
        raise ValueError(f"the flow bound must be a positive number; got {bound!r}")
    scaled = np.clip(np.asarray(flow, np.float64) / bound, -1, 1) * 127
    return (128 + np.rint(scaled)).astype(np.uint8)


# --------------------------------------------------------------------------------
# Sound


class Sound(NamedTuple):
    """The layers of a clip's sound, each (S,) float64 in the same unit.

    Attributes:
        event: The sound of the action.
        distractors: Pieces of the sounds of other actions.
        noise: Background noise.
        gain: Factor from the sum of the layers to the waveform.
        snr_db: ``10 log10(mean(event^2) / mean(noise^2))``, the value aimed at.
    """

    event: np.ndarray
    distractors: np.ndarray
    noise: np.ndarray
    gain: float
    snr_db: float

    def mix(self) -> np.ndarray:
        """The waveform, (S,) float32 in [-1, 1]."""
        total = self.gain * (self.event + self.distractors + self.noise)
        return np.clip(total, -1, 1).astype(np.float32)


def render_audio(config: SynthConfig, domain: str, split: str, index: int) -> Sound:
    """Sound of a clip: ``round(seconds * sample_rate)`` samples, in layers."""
    event_random = clip_random(config, domain, split, index, _EVENT)
    other_random = clip_random(config, domain, split, index, _DISTRACTOR)
    noise_random = clip_random(config, domain, split, index, _NOISE)
    rate, label = config.sample_rate, clip_label(config, index)
    times = np.arange(round(config.seconds * rate)) / rate

    room = _room(domain, rate, event_random)
    event = action_sound(CLASSES[label], domain, event_random, times)
    event = _unit_power(_reverberate(event, room))

    distractors = np.zeros_like(event)
    for _ in range(int(other_random.integers(1, 4))):
        other = int(other_random.integers(1, config.num_classes))
        action = CLASSES[(label + other) % config.num_classes]
        piece = action_sound(action, domain, other_random, times)
        start = other_random.uniform(0, 0.85) * config.seconds
        length = other_random.uniform(0.15, 0.4) * config.seconds
        piece *= (times >= start) & (times < start + length)
        distractors += other_random.uniform(0.6, 1.2) * _unit_peak(piece)
    # Relative to the event's peak: what masks a sound is another as loud as it.
    distractors = _reverberate(distractors, room) * np.abs(event).max()
    distractors *= 1.5 * config.audio_difficulty

    snr_db = 20 - 32 * config.audio_difficulty + noise_random.uniform(-3, 3)
    snr_db += {"studio": 2.0, "street": -2.0, "sketch": 0.0}[domain]
    noise = _unit_power(_background_noise(domain, len(times), rate, noise_random))
    noise *= 10 ** (-snr_db / 20)

    loudest = np.abs(event + distractors + noise).max()
    gain = noise_random.uniform(0.3, 0.95) / loudest
    return Sound(event, distractors, noise, gain, snr_db)


def action_sound(
    action: str, domain: str, random: Generator, times: np.ndarray
) -> np.ndarray:
    """Dry sound of one instance of an action at ``times`` (seconds), (S,) float64."""
    seconds = times[-1] + times[1]
    pitch = (
        random.uniform(260, 620) * {"studio": 1.0, "street": 0.8, "sketch": 1.4}[domain]
    )
    share, other = random.random(), random.random()
    active = random.uniform(0.65, 1.0) * seconds  # the part of the clip that sounds
    begin = random.uniform(0, seconds - active) if active < seconds else 0.0
    jitter = random.uniform(-1, 1, 64)
    grain = random.standard_normal(len(times))

    def onsets(rate: float, looseness: float) -> np.ndarray:
        count = max(1, min(64, int(active * rate)))
        regular = begin + np.arange(count) * active / count
        return regular + looseness * jitter[:count] * active / count

    def window(start: float, length: float, edge: float = 0.01) -> np.ndarray:
        rise = np.clip((times - start) / edge, 0, 1)
        fall = np.clip((start + length - times) / edge, 0, 1)
        return rise * fall

    sound = np.zeros_like(times)
    if action in ("bounce", "circle"):
        sense = -1 if action == "bounce" else 1
        octaves = 0.35 + 1.0 * share
        rate = 1.2 + 1.3 * other
        length = 0.75 / rate
        for start in onsets(rate, 0.1):
            u = np.clip((times - start) / length, 0, 1)
            sweep = pitch * 1.3 * 2 ** (sense * octaves * (u - 0.5))
            sound += window(start, length) * _tone(domain, sweep, times)
    elif action == "swing":  # regular clicks
        decay = 0.006 + 0.014 * share
        ring = 1100 + 1500 * other
        ring *= {"studio": 1.0, "street": 0.75, "sketch": 1.25}[domain]
        for start in onsets(3.5 + 3 * share, 0.04):
            after = times - start
            ringing = np.sin(2 * np.pi * ring * after) + 0.5 * grain
            sound += np.where(
                after >= 0, ringing * np.exp(-np.maximum(after, 0) / decay), 0
            )
    elif action == "pulse":  # bursts of band-limited noise
        band = (900 + 1400 * other) * np.array([0.7, 1.5])
        band = np.minimum(band, 0.45 / times[1])
        filtered = signal.sosfilt(
            signal.butter(2, band, "bandpass", fs=1 / times[1], output="sos"), grain
        )
        for start in onsets(2.0 + 2.0 * share, 0.15):
            sound += window(start, 0.05 + 0.12 * other, 0.02) * filtered
    elif action == "spin":  # two tones in turn
        interval = 2 ** ((1.5 + 5 * share) / 12)
        rate = 3.0 + 3.0 * other
        upper = np.floor((times - begin) * rate) % 2
        pitches = pitch * np.where(upper == 1, interval, 1.0)
        sound = window(begin, active) * _tone(domain, pitches, times)
    elif action == "zigzag":  # one tone whose loudness trembles
        rate = 3.0 + 3.0 * other
        depth = 0.5 + 0.45 * share
        tremor = 1 - depth * (0.5 + 0.5 * np.cos(2 * np.pi * rate * (times - begin)))
        level = np.full_like(times, pitch * 1.15)
        sound = window(begin, active) * tremor * _tone(domain, level, times)
    else:
        raise ValueError(f"got action {action!r}, needs one of {list(CLASSES)}")
    return sound


def _tone(domain: str, pitch: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A tone of the given pitch (Hz, per sample) in the timbre of the domain."""
    weights = {
        "studio": {1: 1.0, 2: 0.25},
        "street": {k: 1 / k for k in range(1, 6)},
        "sketch": {k: 1 / k for k in (1, 3, 5, 7)},
    }[domain]
    if domain == "sketch":
        pitch = pitch * (1 + 0.03 * np.sin(2 * np.pi * 5.5 * times))
    phase = 2 * np.pi * np.cumsum(pitch) * times[1]
    nyquist = 0.5 / times[1]
    tone = np.zeros_like(times)
    for harmonic, weight in weights.items():
        # Harmonics above half the sample rate would come back as false low tones.
        tone += weight * (harmonic * pitch < nyquist) * np.sin(harmonic * phase)
    return tone


def _room(domain: str, rate: int, random: Generator) -> np.ndarray:
    """Impulse response of the place, (K,)."""
    length, decay, wet = {
        "studio": (0.05, 0.012, 0.08),
        "street": (0.35, 0.09, 0.35),
        "sketch": (0.2, 0.03, 0.2),
    }[domain]
    times = np.arange(int(length * rate)) / rate
    tail = random.standard_normal(len(times)) * np.exp(-times / decay)
    response = wet * tail / np.sqrt((tail**2).sum())
    response[0] = 1.0
    if domain == "sketch":  # one distinct echo
        response[int(random.uniform(0.08, 0.16) * rate)] += 0.7
    return response


def _reverberate(sound: np.ndarray, room: np.ndarray) -> np.ndarray:
    return signal.oaconvolve(sound, room)[: len(sound)]


def _background_noise(
    domain: str, samples: int, rate: int, random: Generator
) -> np.ndarray:
    """Hiss in the studio, traffic in the street, tape and crackle in the sketch."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20)
    exponent = {"studio": 0.1, "street": 0.7, "sketch": 0.4}[domain]
    noise = _unit_power(np.fft.irfft(spectrum * frequency**-exponent, samples))
    if domain == "sketch":
        pops = random.random(samples) < 12 / rate
        noise = noise + 14 * pops * random.standard_normal(samples)
    return noise


def _unit_power(sound: np.ndarray) -> np.ndarray:
    return sound / max(math.sqrt(np.mean(sound**2)), 1e-9)


def _unit_peak(sound: np.ndarray) -> np.ndarray:
    return sound / max(np.abs(sound).max(), 1e-9)


# --------------------------------------------------------------------------------
# Files


def clip_files(
    config: SynthConfig, domain: str, split: str, index: int
) -> dict[str, str]:
    """Paths of a clip's files by modality, relative to the data set's folder.

    Keys are ``video``, ``flow_x``, ``flow_y`` and, unless it is missing, ``audio``.
    """
    name = clip_name(config, split, index)
    files = {
        "video": f"{domain}/videos/{name}.mp4",
        "flow_x": f"{domain}/flow/{name}_flow_x.mp4",
        "flow_y": f"{domain}/flow/{name}_flow_y.mp4",
    }
    if index not in clips_without_audio(config, domain, split):
        files["audio"] = f"{domain}/audio/{name}.wav"
    return files


def write_video(path: Path | str, frames: np.ndarray, fps: int) -> None:
    """Encode (T, H, W, 3) RGB or (T, H, W) gray uint8 frames as mp4.

    h264 by libx264, or MPEG-4 part 2 where FFmpeg was built without it.
    """
    codec, options = _codec()
    pixels = "rgb24" if frames.ndim == 4 else "gray"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        # More threads would make the bytes depend on the machine.
        stream.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _codec() -> tuple[str, dict[str, str]]:
    if "libx264" in av.codec.codecs_available:
        # Short groups of pictures without B frames: clips are read at random places.
        options = {"crf": "16", "preset": "veryfast", "g": "8", "bf": "0"}
        return "libx264", options | {"threads": "1"}
    return "mpeg4", {"qmin": "2", "qmax": "3", "g": "8"}


def _write(path: Path, writer: Callable[[Path], None]) -> None:
    """Let ``writer`` fill a temporary file, then move it to ``path`` at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_clip(
    out_dir: Path | str, config: SynthConfig, domain: str, split: str, index: int
) -> None:
    """Render and encode one clip; files that are already there are left alone."""
    files = clip_files(config, domain, split, index)
    paths = {key: Path(out_dir) / file for key, file in files.items()}
    todo = {key for key, path in paths.items() if not path.exists()}
    if not todo:
        return
    clip = render_clip(config, domain, split, index)
    pictures = {"video": clip.frames}
    if todo & {"flow_x", "flow_y"}:
        flow = quantize_flow(compute_flow(clip.frames), config.flow_bound)
        pictures |= {"flow_x": flow[..., 0], "flow_y": flow[..., 1]}
    for key in sorted(todo - {"audio"}):
        frames = pictures[key]
        _write(paths[key], lambda path, f=frames: write_video(path, f, config.fps))
    if "audio" in todo:
        _write(
            paths["audio"],
            lambda path: soundfile.write(
                path, clip.waveform, config.sample_rate, subtype="PCM_16", format="WAV"
            ),
        )


def dataset_meta(config: SynthConfig) -> dict:
    """Content of ``synth.json``: classes, domains, every parameter and the counts."""
    counts, silent = {}, {}
    for domain in config.domains:
        counts[domain] = {split: config.clips_per_split(split) for split in SPLITS}
        silent[domain] = {
            split: len(clips_without_audio(config, domain, split)) for split in SPLITS
        }
    meta = {
        "generator_version": GENERATOR_VERSION,
        "classes": config.classes,
        "domains": config.domains,
        "sources": [d for d in config.domains if d not in config.targets],
        "targets": config.targets,
        "seed": config.seed,
        "parameters": dataclasses.asdict(config),
        "seconds_per_clip": config.seconds,
        "codec": _codec()[0],
        "counts": counts,
        "clips_without_audio": silent,
    }
    return json.loads(json.dumps(meta))


def dataset_state(out_dir: Path | str, config: SynthConfig) -> str:
    """What ``out_dir`` holds with respect to ``config``.

    Returns:
        ``'absent'``: nothing of a synthetic data set; ``'complete'``: this very data
        set with all of its files; ``'partial'``: this data set, some files missing
        (a generation was stopped); ``'different'``: one with other parameters;
        ``'foreign'``: folders of the same names that this module did not make.
    """
    out_dir = Path(out_dir)
    stored = [out_dir / name for name in (META_FILE, _PARTIAL_FILE)]
    stored = [path for path in stored if path.exists()]
    if not stored:
        taken = [SPLIT_FOLDER, *config.domains]
        return "foreign" if any((out_dir / n).exists() for n in taken) else "absent"
    wanted = _identity(dataset_meta(config))
    if any(_identity(_read_meta(path)) != wanted for path in stored):
        return "different"
    if stored != [out_dir / META_FILE]:
        return "partial"
    files = [file for _, file in _all_files(config)]
    files += [_split_file(domain, split) for domain, split in _places(config)]
    return "complete" if all((out_dir / f).exists() for f in files) else "partial"


def _identity(meta: dict) -> tuple:
    return meta.get("generator_version"), meta.get("parameters")


def _read_meta(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text())
    except (ValueError, OSError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _places(config: SynthConfig) -> list[tuple[str, str]]:
    return [(domain, split) for domain in config.domains for split in SPLITS]


def _all_files(config: SynthConfig) -> Iterator[tuple[tuple[str, str, int], str]]:
    for domain, split in _places(config):
        silent = clips_without_audio(config, domain, split)
        for index in range(config.clips_per_split(split)):
            name = clip_name(config, split, index)
            yield (domain, split, index), f"{domain}/videos/{name}.mp4"
            for axis in "xy":
                file = f"{domain}/flow/{name}_flow_{axis}.mp4"
                yield (domain, split, index), file
            if index not in silent:
                yield (domain, split, index), f"{domain}/audio/{name}.wav"


def _split_file(domain: str, split: str) -> str:
    return f"{SPLIT_FOLDER}/Synth_{split}_only_{domain}.csv"


# --------------------------------------------------------------------------------
# The whole data set


def generate(
    out_dir: Path | str,
    config: SynthConfig = SynthConfig(),
    workers: int = 2,
    force: bool = False,
    progress: bool = True,
) -> dict:
    """Write a data set in HAC's layout.

    ::

        Synth_Splits/Synth_{train,test}_only_{domain}.csv   (no header: file,label)
        {domain}/videos/X.mp4
        {domain}/flow/X_flow_x.mp4 and X_flow_y.mp4
        {domain}/audio/X.wav
        synth.json

    ``synth.json`` is written last. A generation that was stopped goes on where it
    ended, and a complete data set of the same parameters is left as it is.

    Args:
        out_dir: Folder to fill, created if need be.
        config: What to generate.
        workers: Processes. The files do not depend on it; 1 stays in this process.
        force: Delete a synthetic data set of other parameters in ``out_dir``, or make
            an identical one anew.
        progress: Show a progress bar on standard error.

    Returns:
        The content of ``synth.json``, see :func:`dataset_meta`.

    Raises:
        ValueError: The config or ``workers`` cannot work.
        FileExistsError: ``out_dir`` holds something else.
    """
    config.validate()
    if not isinstance(workers, numbers.Integral) or workers < 1:
        raise ValueError(f"workers: got {workers!r}, needs an integer from 1")
    out_dir = Path(out_dir)
    meta = dataset_meta(config)
    state = dataset_state(out_dir, config)
    if state == "foreign":
        raise FileExistsError(
            f"{out_dir} has folders of the names this data set needs "
            f"({SPLIT_FOLDER} or {', '.join(config.domains)}) but no {META_FILE}: they "
            "were not made by this generator and are not touched; choose another "
            "folder"
        )
    if state == "different" and not force:
        raise FileExistsError(
            f"{out_dir} holds a synthetic data set of other parameters "
            f"({_difference(out_dir, meta)}); choose another folder, or replace it "
            "with --force (force=True)"
        )
    if state == "complete" and not force:
        return _read_meta(out_dir / META_FILE)
    if force and state != "absent":
        _delete(out_dir)

    for domain in config.domains:
        for kind in ("videos", "flow", "audio"):
            (out_dir / domain / kind).mkdir(parents=True, exist_ok=True)
            for leftover in (out_dir / domain / kind).glob(".*.tmp"):
                leftover.unlink()
    (out_dir / SPLIT_FOLDER).mkdir(exist_ok=True)
    text = json.dumps(meta, indent=2) + "\n"
    _write(out_dir / _PARTIAL_FILE, lambda path: path.write_text(text))
    (out_dir / META_FILE).unlink(missing_ok=True)

    todo = {clip: None for clip, f in _all_files(config) if not (out_dir / f).exists()}
    _write_clips(out_dir, config, list(todo), workers, progress)
    for domain, split in _places(config):
        rows = "".join(
            f"{clip_name(config, split, i)}.mp4,{clip_label(config, i)}\r\n"
            for i in range(config.clips_per_split(split))
        ).encode()
        file = out_dir / _split_file(domain, split)
        _write(file, lambda path, rows=rows: path.write_bytes(rows))
    os.replace(out_dir / _PARTIAL_FILE, out_dir / META_FILE)
    return meta


def _difference(out_dir: Path, meta: dict) -> str:
    for name in (META_FILE, _PARTIAL_FILE):
        old = _read_meta(out_dir / name)
        if _identity(old) == _identity(meta):
            continue
        if not isinstance(old.get("parameters"), dict):
            return f"{name} is unreadable" if (out_dir / name).exists() else "unknown"
        if old.get("generator_version") != GENERATOR_VERSION:
            return (
                f"generator version {old.get('generator_version')} there, "
                f"{GENERATOR_VERSION} here"
            )
        here = meta["parameters"]
        return ", ".join(
            f"{key} {old['parameters'].get(key)!r} there, {here.get(key)!r} asked for"
            for key in sorted({*here, *old["parameters"]})
            if here.get(key) != old["parameters"].get(key)
        )
    return "unknown"


def _delete(out_dir: Path) -> None:
    """Remove what this module wrote; other files in ``out_dir`` stay."""
    for name in (SPLIT_FOLDER, *DOMAINS):
        shutil.rmtree(out_dir / name, ignore_errors=True)
    for name in (META_FILE, _PARTIAL_FILE):
        (out_dir / name).unlink(missing_ok=True)


def _write_clips(
    out_dir: Path,
    config: SynthConfig,
    clips: list[tuple[str, str, int]],
    workers: int,
    progress: bool,
) -> None:
    chunks = [clips[i : i + _CHUNK] for i in range(0, len(clips), _CHUNK)]
    bar = Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
        # A refresh thread must not hold the console's lock while workers fork.
        auto_refresh=False,
    )
    with _single_threaded_opencv(), bar:
        task = bar.add_task("rendering clips", total=len(clips))
        for done in _run_chunks(out_dir, config, chunks, min(workers, len(chunks))):
            bar.update(task, advance=done, refresh=True)


def _run_chunks(
    out_dir: Path, config: SynthConfig, chunks: list, workers: int
) -> Iterator[int]:
    if workers <= 1:
        for chunk in chunks:
            yield _write_chunk(out_dir, config, chunk)
        return
    # Forked workers start at once; spawned ones would import torch and the host
    # libraries first, which takes longer than the rendering.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(_write_chunk, out_dir, config, c) for c in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _write_chunk(out_dir: Path, config: SynthConfig, chunk: list) -> int:
    for domain, split, index in chunk:
        try:
            write_clip(out_dir, config, domain, split, index)
        except Exception as error:
            raise RuntimeError(
                f"could not write clip {index} of {domain}/{split}: {error}"
            ) from error
    return len(chunk)


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    # Set before the fork: a child cannot use the parent's pool of threads.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
