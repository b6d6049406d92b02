"""The sound of a clip: event of the class, acoustics of the domain, disturbances."""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import signal

from .config import CLASSES, SynthClip


class _Acoustics(NamedTuple):
    pitch: float  # factor
    ring: float  # factor of the pitch of clicks
    harmonics: dict[int, float]  # level of each
    room: tuple[float, float, float]  # seconds of length and decay, level
    slope: float  # noise falls with frequency ** -slope
    snr: float  # dB
    vibrato: float = 0.0  # depth
    echo: bool = False
    pops: float = 0.0  # of crackle, per second


_SAWTOOTH, _SQUARE = ({k: 1 / k for k in ks} for ks in (range(1, 6), (1, 3, 5, 7)))
_ACOUSTICS = dict(
    # Hiss in the studio, traffic in the street, tape and crackle in the sketch.
    studio=_Acoustics(1.0, 1.0, {1: 1.0, 2: 0.25}, (0.05, 0.012, 0.08), 0.1, 2.0),
    street=_Acoustics(0.8, 0.75, _SAWTOOTH, (0.35, 0.09, 0.35), 0.7, -2.0),
    sketch=_Acoustics(
        1.4, 1.25, _SQUARE, (0.2, 0.03, 0.2), 0.4, 0.0, vibrato=0.03, echo=True, pops=12
    ),
)


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


def render_audio(clip: SynthClip) -> Sound:
    """Sound of a clip: ``round(seconds * sample_rate)`` samples, in layers."""
    config, domain, rate = clip.config, clip.domain, clip.config.sample_rate
    streams = map(clip.random, ("event", "distractor", "noise"))
    random, other_random, noise_random = streams
    times = np.arange(round(config.seconds * rate)) / rate

    room = _room(_ACOUSTICS[domain], rate, random)
    event = action_sound(CLASSES[clip.label], domain, random, times)
    event = _unit_power(_reverberate(event, room))

    distractors = np.zeros_like(event)
    for _ in range(int(other_random.integers(1, 4))):
        other = clip.label + int(other_random.integers(1, config.num_classes))
        action = CLASSES[other % config.num_classes]
        piece = action_sound(action, domain, other_random, times)
        start = other_random.uniform(0, 0.85) * config.seconds
        length = other_random.uniform(0.15, 0.4) * config.seconds
        piece *= (times >= start) & (times < start + length)
        distractors += other_random.uniform(0.6, 1.2) * _unit_peak(piece)
    # Relative to the event's peak: what masks a sound is another as loud as it.
    distractors = _reverberate(distractors, room) * np.abs(event).max()
    distractors *= 1.5 * config.audio_difficulty

    snr_db = 20 - 32 * config.audio_difficulty + noise_random.uniform(-3, 3)
    snr_db += _ACOUSTICS[domain].snr
    noise = _background_noise(_ACOUSTICS[domain], len(times), rate, noise_random)
    noise = _unit_power(noise) * 10 ** (-snr_db / 20)

    loudest = np.abs(event + distractors + noise).max()
    gain = noise_random.uniform(0.3, 0.95) / loudest
    return Sound(event, distractors, noise, gain, snr_db)


# The sounds of the actions


@dataclass
class _Instance:
    """What one instance of an action draws, the same numbers for every action."""

    acoustics: _Acoustics
    random: Generator
    times: np.ndarray

    def __post_init__(self) -> None:
        random, times = self.random, self.times
        seconds = times[-1] + times[1]
        self.pitch = random.uniform(260, 620) * self.acoustics.pitch
        self.share, self.other = random.random(), random.random()
        self.active = random.uniform(0.65, 1.0) * seconds  # the part that sounds
        room = seconds - self.active
        self.begin = random.uniform(0, room) if room > 0 else 0.0
        self.jitter = random.uniform(-1, 1, 64)
        self.grain = random.standard_normal(len(times))

    def onsets(self, rate: float, looseness: float) -> np.ndarray:
        """Starts in seconds, ``rate`` per second."""
        count = max(1, min(64, int(self.active * rate)))
        regular = self.begin + np.arange(count) * self.active / count
        return regular + looseness * self.jitter[:count] * self.active / count

    def window(self, start: float, length: float, edge: float = 0.01) -> np.ndarray:
        """1 from the start on for a while, with edges of some seconds; else 0."""
        rise = np.clip((self.times - start) / edge, 0, 1)
        fall = np.clip((start + length - self.times) / edge, 0, 1)
        return rise * fall

    def tone(self, pitch: np.ndarray) -> np.ndarray:
        """A tone of the given pitch (Hz, per sample) in the timbre of the domain."""
        tremble = np.sin(2 * np.pi * 5.5 * self.times)
        pitch = pitch * (1 + self.acoustics.vibrato * tremble)
        phase = 2 * np.pi * np.cumsum(pitch) * self.times[1]
        nyquist = 0.5 / self.times[1]
        tone = np.zeros_like(self.times)
        for harmonic, level in self.acoustics.harmonics.items():
            # Harmonics above half the sample rate would come back as false low tones.
            audible = harmonic * pitch < nyquist
            tone += level * audible * np.sin(harmonic * phase)
        return tone


def _sweeps(sense: int, it: _Instance) -> np.ndarray:
    octaves = 0.35 + 1.0 * it.share
    rate = 1.2 + 1.3 * it.other
    length = 0.75 / rate
    sound = np.zeros_like(it.times)
    for start in it.onsets(rate, 0.1):
        u = np.clip((it.times - start) / length, 0, 1)
        sweep = it.pitch * 1.3 * 2 ** (sense * octaves * (u - 0.5))
        sound += it.window(start, length) * it.tone(sweep)
    return sound


def _clicks(it: _Instance) -> np.ndarray:
    decay = 0.006 + 0.014 * it.share
    ring = (1100 + 1500 * it.other) * it.acoustics.ring
    sound = np.zeros_like(it.times)
    for start in it.onsets(3.5 + 3 * it.share, 0.04):
        after = it.times - start
        ringing = np.sin(2 * np.pi * ring * after) + 0.5 * it.grain
        fading = np.exp(-np.maximum(after, 0) / decay)
        sound += np.where(after >= 0, ringing * fading, 0)
    return sound


def _bursts(it: _Instance) -> np.ndarray:
    rate = 1 / it.times[1]
    band = (900 + 1400 * it.other) * np.array([0.7, 1.5])
    band = np.minimum(band, 0.45 / it.times[1])
    sections = signal.butter(2, band, "bandpass", fs=rate, output="sos")
    filtered = signal.sosfilt(sections, it.grain)
    sound = np.zeros_like(it.times)
    for start in it.onsets(2.0 + 2.0 * it.share, 0.15):
        sound += it.window(start, 0.05 + 0.12 * it.other, 0.02) * filtered
    return sound


def _two_tones(it: _Instance) -> np.ndarray:
    interval = 2 ** ((1.5 + 5 * it.share) / 12)
    upper = np.floor((it.times - it.begin) * (3.0 + 3.0 * it.other)) % 2
    pitches = it.pitch * np.where(upper == 1, interval, 1.0)
    return it.window(it.begin, it.active) * it.tone(pitches)


def _trembling_tone(it: _Instance) -> np.ndarray:
    rate = 3.0 + 3.0 * it.other
    depth = 0.5 + 0.45 * it.share
    wave = np.cos(2 * np.pi * rate * (it.times - it.begin))
    tremor = 1 - depth * (0.5 + 0.5 * wave)
    tone = it.tone(np.full_like(it.times, it.pitch * 1.15))
    return it.window(it.begin, it.active) * tremor * tone


_SOUNDS = dict(
    swing=_clicks,
    bounce=partial(_sweeps, -1),
    circle=partial(_sweeps, 1),
    pulse=_bursts,
    spin=_two_tones,
    zigzag=_trembling_tone,
)


def action_sound(
    action: str, domain: str, random: Generator, times: np.ndarray
) -> np.ndarray:
    """Dry sound of one instance of an action at ``times`` (seconds), (S,) float64."""
    return _SOUNDS[action](_Instance(_ACOUSTICS[domain], random, times))


# The place


def _room(acoustics: _Acoustics, rate: int, random: Generator) -> np.ndarray:
    """Impulse response, (K,)."""
    length, decay, level = acoustics.room
    times = np.arange(int(length * rate)) / rate
    tail = random.standard_normal(len(times)) * np.exp(-times / decay)
    response = level * tail / np.sqrt((tail**2).sum())
    response[0] = 1.0
    if acoustics.echo:
        response[int(random.uniform(0.08, 0.16) * rate)] += 0.7
    return response


def _reverberate(sound: np.ndarray, room: np.ndarray) -> np.ndarray:
    return signal.oaconvolve(sound, room)[: len(sound)]


def _background_noise(
    acoustics: _Acoustics, samples: int, rate: int, random: Generator
) -> np.ndarray:
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20)
    filtered = spectrum * frequency**-acoustics.slope
    noise = _unit_power(np.fft.irfft(filtered, samples))
    if acoustics.pops:
        pops = random.random(samples) < acoustics.pops / rate
        noise = noise + 14 * pops * random.standard_normal(samples)
    return noise


def _unit_power(sound: np.ndarray) -> np.ndarray:
    return sound / max(math.sqrt(np.mean(sound**2)), 1e-9)


def _unit_peak(sound: np.ndarray) -> np.ndarray:
    return sound / max(np.abs(sound).max(), 1e-9)
