"""What to generate, and what follows from it for each clip."""

import math
import numbers
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

CLASSES: tuple[str, ...] = ("swing", "bounce", "circle", "pulse", "spin", "zigzag")
"""Actions by label. A smaller data set uses the first ``num_classes`` of them."""

DOMAINS: tuple[str, ...] = ("studio", "street", "sketch")
"""Renderings. The position in this tuple enters the seeds: append, never reorder."""

SPLITS: tuple[str, ...] = ("train", "test")

GENERATOR_VERSION = 1
"""Raise it with every change that alters a file made from the same settings."""

# Their order enters the seeds too.
_STREAMS = (
    "cue",
    "motion",
    "look",
    "sensor",
    "event",
    "distractor",
    "noise",
    "useless",
)

MODALITIES: tuple[str, ...] = ("video", "audio", "flow")
"""What a clip has."""

_INTEGERS = dict(
    seed=(0, math.inf),
    num_classes=(2, len(CLASSES)),
    train_per_class=(1, math.inf),
    test_per_class=(1, math.inf),
    size=(32, math.inf),
    frames=(4, math.inf),
    fps=(1, math.inf),
    sample_rate=(8000, math.inf),
)
_FRACTIONS = ("spurious", "audio_difficulty", "missing_audio")


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
        useless: Modalities whose files hold white noise instead, in every domain and
            split: a method should lose nothing by them.
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
    useless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A list, as JSON and command lines give it, should equal the tuple.
        for name in ("domains", "target", "useless"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def targets(self) -> tuple[str, ...]:
        """The target domains, also where ``target`` names a single one."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames / self.fps

    def count(self, split: str) -> int:
        """Number of clips of one domain in ``split``."""
        per_class = {"train": self.train_per_class, "test": self.test_per_class}
        return per_class[split] * self.num_classes

    def clips(self, domain: str, split: str) -> "list[SynthClip]":
        """The clips of a domain and split. Classes take turns."""
        return [SynthClip(self, domain, split, i) for i in range(self.count(split))]

    def validate(self) -> None:
        """Checks every value.

        Raises:
            ValueError: One error that lists every key with a wrong value, what
                arrived and what would work.
        """
        problems = [
            f"\n  {key}: got {getattr(self, key)!r}, needs {needed}"
            for key, needed in self._problems()
        ]
        if problems:
            raise ValueError("cannot generate this data set:" + "".join(problems))

    def _problems(self) -> Iterator[tuple[str, str]]:
        wrong = set()
        for key, (low, high) in _INTEGERS.items():
            if not _is_number(getattr(self, key), numbers.Integral, low, high):
                wrong.add(key)
                upper = f" to {high}" if high < math.inf else ""
                yield key, f"an integer from {low}{upper}"
        if "size" not in wrong and self.size % 2:
            # h264 halves the colour planes.
            yield "size", f"an even number, such as {self.size + 1}"
        if not wrong & {"frames", "fps"} and self.seconds < 0.5:
            least = math.ceil(self.fps / 2)
            yield "frames", f"at least half a second: {least} at {self.fps} fps"
        for key in _FRACTIONS:
            if not _is_number(getattr(self, key), numbers.Real, 0, 1):
                yield key, "a number from 0 to 1"
        smallest, largest = sys.float_info.min, sys.float_info.max
        if not _is_number(self.flow_bound, numbers.Real, smallest, largest):
            yield "flow_bound", "a positive number of pixels per frame"
        if not _is_choice(self.domains, DOMAINS):
            yield "domains", f"a non-repeating choice from {list(DOMAINS)}"
        elif not _is_choice(self.targets, self.domains):
            one_of = f"one of the domains {list(self.domains)}"
            yield "target", f"{one_of}, or several as a tuple"
        elif len(self.targets) == len(self.domains):
            left = f"a source to remain among the domains {list(self.domains)}"
            yield "target", f"{left}: fewer targets or more domains"
        every = set(MODALITIES) <= set(self.useless)
        if self.useless and (every or not _is_choice(self.useless, MODALITIES)):
            yield "useless", f"some, but not all, of {list(MODALITIES)}"


def _is_number(value: object, kind: type, low: float, high: float) -> bool:
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    return is_kind and low <= value <= high


def _is_choice(values: object, allowed: tuple[str, ...]) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(value, str) and value in allowed for value in values)
        and len(set(values)) == len(values)
    )


@dataclass(frozen=True)
class SynthClip:
    """One clip: everything in its files follows from these four.

    Attributes:
        config: A valid config.
        domain: One of ``config.domains``.
        split: ``'train'`` or ``'test'``.
        index: From 0, within its domain and split.
    """

    config: SynthConfig
    domain: str
    split: str
    index: int

    @property
    def label(self) -> int:
        """Index into :data:`CLASSES`."""
        return self.index % self.config.num_classes

    @property
    def name(self) -> str:
        """File name without suffix. The numbers of test go on where train ends."""
        number = self.index // self.config.num_classes
        if self.split == "test":
            number += self.config.train_per_class
        return f"{CLASSES[self.label]}_{number:04d}"

    @property
    def cue(self) -> int:
        """The class whose tint the background shows, see ``spurious``."""
        random = self.random("cue")
        follows = random.random() < self.config.spurious
        drawn = int(random.integers(self.config.num_classes))
        is_source = self.domain not in self.config.targets
        return self.label if follows and is_source else drawn

    @property
    def has_audio(self) -> bool:
        """Whether a wav file is written."""
        count = self.config.count(self.split)
        domain, split = self._place
        # Domain + 1000 keeps this sequence apart from those of the clips.
        seeds = [GENERATOR_VERSION, int(self.config.seed), 1000 + domain, split]
        missing = round(self.config.missing_audio * count)
        silent = np.random.default_rng(seeds).permutation(count)[:missing]
        return self.index not in silent

    def random(self, stream: str) -> Generator:
        """The random numbers of one aspect, anew at each call.

        Aspects have streams of their own so that a knob changes what it names and
        nothing else: the motion of a clip is the same at every ``spurious``.
        """
        place = (*self._place, self.index, _STREAMS.index(stream))
        return np.random.default_rng([GENERATOR_VERSION, int(self.config.seed), *place])

    @property
    def _place(self) -> tuple[int, int]:
        return DOMAINS.index(self.domain), SPLITS.index(self.split)
