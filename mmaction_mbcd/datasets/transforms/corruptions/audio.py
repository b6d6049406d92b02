"""Corruptions of the waveform, before it becomes a spectrogram.

Every function takes a waveform ``(samples,)`` in [-1, 1] and returns a new one of the
same length and type. Energies and ratios are those of the whole waveform that is
given: behind ``TileWaveform``, the clip as the encoder gets it. A sum may leave [-1,
1], as the stated ratios would not hold otherwise; the spectrogram is normalised after
it. Only wind is clipped, as the published files are.
"""

import functools
import math
from pathlib import Path

import numpy as np
import scipy
import soundfile

from ..limits import check_file
from .severities import HAC_C, OWN, Corruption

SOUND_SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")

_TALKERS = 8


def decibels(ratio: float) -> float:
    """The factor of an amplitude: 20 dB are 10."""
    return 10 ** (ratio / 20)


def rms(waveform: np.ndarray) -> float:
    """Root of the mean square, computed in float64."""
    return math.sqrt(np.mean(np.square(waveform, dtype=np.float64)))


def mixed_at(waveform: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Adds noise, scaled so that the signal's energy is ``snr`` dB above the noise's.

    To silence nothing is added, and neither is silence to anything.

    Args:
        waveform: ``(samples,)``.
        noise: ``(samples,)``, of any scale.
        snr: Signal-to-noise ratio, dB.
    """
    level = rms(noise)
    gain = rms(waveform) / decibels(snr) / level if level else 0.0
    return (waveform + gain * noise).astype(waveform.dtype)


def white_noise(
    waveform: np.ndarray, rng: np.random.Generator, snr: float, rate: int
) -> np.ndarray:
    """Adds Gaussian noise of the same energy at every frequency, at ``snr`` dB."""
    return mixed_at(waveform, rng.standard_normal(len(waveform)), snr)


def wind(
    waveform: np.ndarray,
    rng: np.random.Generator,
    gain: float,
    rate: int,
    recording: np.ndarray | None = None,
) -> np.ndarray:
    """Adds wind and clips to [-1, 1].

    Args:
        waveform: ``(samples,)``.
        rng: Random numbers.
        gain: dB that are added to the wind's own level: loud wind drowns a quiet clip.
        rate: Hz.
        recording: Wind, repeated from its start as the published protocol has it;
            without it :func:`synthetic_wind`.
    """
    if recording is None:
        recording = synthetic_wind(len(waveform), rate, rng)
    sound = decibels(gain) * np.resize(recording, len(waveform))
    return np.clip(waveform + sound, -1, 1).astype(waveform.dtype)


def background(
    waveform: np.ndarray,
    rng: np.random.Generator,
    snr: float,
    rate: int,
    recording: np.ndarray | None = None,
) -> np.ndarray:
    """Adds other sound at ``snr`` dB.

    Args:
        waveform: ``(samples,)``.
        rng: Random numbers.
        snr: Signal-to-noise ratio, dB.
        rate: Hz.
        recording: The other sound, repeated from a random place in it; without it
            :func:`synthetic_babble`.
    """
    if recording is None:
        sound = synthetic_babble(len(waveform), rate, rng)
    else:
        start = rng.integers(len(recording))
        sound = np.resize(np.roll(recording, -start), len(waveform))
    return mixed_at(waveform, sound, snr)


def clipping(
    waveform: np.ndarray, rng: np.random.Generator, excess: float, rate: int
) -> np.ndarray:
    """Cuts off what is above the peak minus ``excess`` dB: an overdriven microphone."""
    limit = np.abs(waveform).max() / decibels(excess)
    return np.clip(waveform, -limit, limit).astype(waveform.dtype)


def low_pass(
    waveform: np.ndarray, rng: np.random.Generator, cutoff: float, rate: int
) -> np.ndarray:
    """Removes what is above ``cutoff`` Hz: a wall, a hand on the microphone.

    Butterworth of order 4, forth and back: no delay, -6 dB at the cutoff, and a cutoff
    that the sound does not reach changes nothing.
    """
    if cutoff >= rate / 2:
        return waveform.copy()
    sections = scipy.signal.butter(4, cutoff, fs=rate, output="sos")
    # It extends the ends by at most 15 samples, and by fewer than there are.
    padding = min(15, len(waveform) - 1)
    filtered = scipy.signal.sosfiltfilt(sections, waveform, padlen=padding)
    return filtered.astype(waveform.dtype)


DROPOUT_SECONDS = 0.05


def dropouts(
    waveform: np.ndarray, rng: np.random.Generator, share: float, rate: int
) -> np.ndarray:
    """Silences ``share`` of the segments of 50 ms: packets that were lost.

    The segments of a smaller share are among those of a larger one.
    """
    length = max(round(DROPOUT_SECONDS * rate), 1)
    count = math.ceil(len(waveform) / length)
    lost = rng.permutation(count)[: round(share * count)]
    kept = np.ones(count, bool)
    kept[lost] = False
    # A bool times a number is that number or zero, in its own type.
    return waveform * np.repeat(kept, length)[: len(waveform)]


# --------------------------------------------------------------------------------
# Sounds that no file is needed for


def coloured_noise(
    length: int, rate: int, rng: np.random.Generator, slope: float, lowest: float
) -> np.ndarray:
    """Gaussian noise whose power falls with frequency.

    Args:
        length: Samples.
        rate: Hz.
        rng: Random numbers.
        slope: Power goes with ``frequency ** -slope``: 0 white, 1 pink, 2 brown.
        lowest: Hz below which it is flat.

    Returns:
        ``(length,)`` float64, of no particular scale, mean 0.
    """
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    spectrum *= np.maximum(frequencies, lowest) ** (-slope / 2)
    spectrum[0] = 0
    return np.fft.irfft(spectrum, length)


def slow_swell(
    length: int, rate: int, rng: np.random.Generator, fastest: float
) -> np.ndarray:
    """A random course in [0, 1]: ``2 * fastest`` heights a second, joined by lines."""
    seconds = length / rate
    knots = max(math.ceil(2 * fastest * seconds) + 1, 2)
    heights = rng.uniform(size=knots)
    return np.interp(np.linspace(0, knots - 1, length), np.arange(knots), heights)


def synthetic_wind(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Wind in a microphone: turbulence, in gusts.

    Noise whose power falls with frequency to the power of -5/3 above 40 Hz, as that of
    turbulence does (Kolmogorov), times a swell of at most 0.5 Hz between a fifth and 1.
    No recording is imitated: for the published strength give one.

    Returns:
        ``(length,)`` float64; its peak is 1, as of a recording at full level.
    """
    rumble = coloured_noise(length, rate, rng, slope=5 / 3, lowest=40)
    gusts = 0.2 + 0.8 * slow_swell(length, rate, rng, fastest=0.5)
    sound = rumble * gusts
    return sound / max(np.abs(sound).max(), np.finfo(float).tiny)


def synthetic_babble(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """What many voices have in common, without any word: a stand-in for a crowd.

    Eight talkers, each pink noise above 100 Hz that is flat below, its loudness a swell
    of 4 Hz, the rate of syllables. Not speech: for real backgrounds give a recording.

    Returns:
        ``(length,)`` float64, of no particular scale.
    """
    return sum(
        coloured_noise(length, rate, rng, slope=1, lowest=100)
        * slow_swell(length, rate, rng, fastest=4) ** 2
        for _ in range(_TALKERS)
    )


# --------------------------------------------------------------------------------
# The user's own recordings


def find_recordings(place: str) -> tuple[str, ...]:
    """The sound file, or those of a folder and its subfolders, sorted.

    Raises:
        ValueError: If there is none.
    """
    path = Path(place)
    if path.is_file():
        return (place,)
    found = (p for p in path.rglob("*") if p.suffix.lower() in SOUND_SUFFIXES)
    files = tuple(sorted(str(p) for p in found))
    if not files:
        raise ValueError(
            f"there is no sound in {place!r}: give a file, or a folder with some that "
            f"end in {', '.join(SOUND_SUFFIXES)}"
        )
    return files


@functools.lru_cache(maxsize=8)
def read_recording(path: str, rate: int) -> np.ndarray:
    """A whole sound file as mono at a rate. Kept, and therefore not to be changed.

    Args:
        path: The file.
        rate: Hz; a file at another rate is resampled.

    Returns:
        ``(samples,)`` float64.

    Raises:
        ValueError: If it is damaged, empty or silent.
    """
    try:
        check_file(path)
        sound, own_rate = soundfile.read(path, always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise ValueError(f"cannot read the recording {path}: {error}") from error
    sound = sound.mean(axis=1)
    if not (np.isfinite(sound).all() and np.abs(sound).max(initial=0) > 0):
        raise ValueError(f"the recording {path} is empty, silent or not finite")
    common = math.gcd(own_rate, rate)
    sound = scipy.signal.resample_poly(sound, rate // common, own_rate // common)
    sound.flags.writeable = False
    return sound


_SNRS = ((20,), (15,), (10,), (5,), (0,))

AUDIO_CORRUPTIONS: dict[str, Corruption] = {
    "white_noise": Corruption(white_noise, _SNRS, OWN, "signal-to-noise ratio, dB"),
    "wind": Corruption(
        wind,
        ((-16,), (-14,), (-12,), (-10,), (-8,)),
        HAC_C + "; its recording is not shipped",
        "gain of the wind, dB",
    ),
    "background": Corruption(background, _SNRS, OWN, "signal-to-noise ratio, dB"),
    "clipping": Corruption(
        clipping, ((6,), (12,), (18,), (24,), (30,)), OWN, "dB below the peak"
    ),
    "low_pass": Corruption(
        low_pass, ((4000,), (2000,), (1000,), (500,), (250,)), OWN, "cutoff, Hz"
    ),
    "dropouts": Corruption(
        dropouts, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)), OWN, "share of the time"
    ),
}
"""Kinds of corrupted sound."""

TAKES_RECORDING = ("wind", "background")
"""Kinds into which a recording may be mixed."""
