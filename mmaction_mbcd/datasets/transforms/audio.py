"""From a sound file to the log-spectrogram that the audio encoder reads.

The chain of the published code (see each transform): a waveform of a fixed length,
its spectrogram, and two augmentations of it. ``results['audios']`` holds the
waveform ``(samples,)`` in [-1, 1] first, the spectrogram ``(F, T)`` later.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy
import soundfile
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from .limits import MAX_SAMPLES, check_file
from .loading import MissingModalityError, UnreadableMediaError

SPANS = ("file", "frames", "segment")

PUBLISHED_FPS = 24.0
"""Frames per second that the published HAC loader takes for every file."""


def first_loaded(results: dict, names: Sequence[str]) -> dict | None:
    """The results of the first of ``names`` whose pipeline sampled frames, if any."""
    for name in names:
        other = results.get("others", {}).get(name)
        if other is not None and "frame_inds" in other:
            return other
    return None


@TRANSFORMS.register_module()
class LoadWaveform(BaseTransform):
    """Reads the part of a sound file that belongs to the sample, as mono.

    Channels are averaged. A file at another rate is resampled (polyphase). Where the
    track ends before the sampled frames begin, the sample hears silence: zeros. A
    segment that lies behind the end was not recorded: the modality is missing.

    With ``sampling='published'`` of the dataset, ``span='frames'`` is the time from
    the first sampled frame to the last one, in the order of the clip and at 24 frames
    per second whatever the file says, as the published HAC loader has it; of a clip
    that loops that may be nothing, and is then silence. Silence is never a missing
    modality there.

    Required keys: filename; for ``span='frames'`` the sampled frames of another
    modality, for ``'segment'`` the row's ``start`` and ``stop`` (s). Added: audios
    ``(samples,)`` float32, sample_rate (Hz), audio_span (s), recorded: how much of the
    file, or of the segment, there is (s), read or not.

    Args:
        sample_rate: Rate of the result in Hz.
        span: ``'file'`` the whole file; ``'frames'`` the time that the sampled frames
            of another modality cover, from the start of the earliest to the end of
            the latest; ``'segment'`` from ``start`` to ``stop`` (EPIC-Kitchens).
            Further sound is never read.
        span_from: For ``'frames'``: the modalities that may give the frames. The
            first one that the sample has already loaded does; with none of them in
            the config (audio alone) the whole file is taken.
        span_fps: Frames per second for turning those frames into time. ``None`` asks
            their file; 24 with ``sampling='published'``.
        max_seconds: Longest part to read, from its start. ``None``: no limit.
        silence: Recorded sound whose amplitude never reaches this is not sound, and
            the modality is missing: 1e-4 is -80 dB or three steps of a 16-bit file. 0
            accepts silence, as ``sampling='published'`` does.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        span: str = "file",
        span_from: str | Sequence[str] = ("video", "flow"),
        span_fps: float | None = None,
        max_seconds: float | None = None,
        silence: float = 1e-4,
    ) -> None:
        if span not in SPANS:
            raise ValueError(f"span must be one of {SPANS}, got {span!r}")
        self.sample_rate = sample_rate
        self.span = span
        self.span_from = (span_from,) if isinstance(span_from, str) else span_from
        self.span_fps = span_fps
        self.max_seconds = max_seconds
        self.silence = silence

    @property
    def reads_from(self) -> tuple[str, ...]:
        """Modalities that have to be loaded before this one, if they are used."""
        return tuple(self.span_from) if self.span == "frames" else ()

    def _seconds(self, results: dict) -> tuple[float, float]:
        start, stop = 0.0, math.inf
        if self.span == "segment":
            start, stop = results["start"], results["stop"]
        elif self.span == "frames":
            other = first_loaded(results, self.span_from)
            if other is not None:
                start, stop = self._span_of(other)
        if self.max_seconds is not None:
            stop = min(stop, start + self.max_seconds)
        return float(start), float(stop)

    def _span_of(self, other: dict) -> tuple[float, float]:
        """The time of another modality's frames."""
        if other.get("sampling") == "published":
            fps = self.span_fps or PUBLISHED_FPS
            inds = other.get("sampled_inds", other["frame_inds"])
            return inds[0] / fps, inds[-1] / fps
        fps = self.span_fps or other.get("avg_fps") or PUBLISHED_FPS
        inds = other["frame_inds"]
        # A short video loops, so the last sampled frame may be an early one.
        return inds.min() / fps, (inds.max() + 1) / fps

    def transform(self, results: dict) -> dict:
        """Reads the sound.

        Raises:
            MissingModalityError: If there is no file, no sound in it or none of the
                segment.
            UnreadableMediaError: If the file is there but is empty or not sound.
        """
        path = results["filename"]
        start, stop = self._seconds(results)
        end = results["stop"] if self.span == "segment" else math.inf
        try:
            # A sound file may be longer than what is read of it.
            check_file(path, max_bytes=None)
            with soundfile.SoundFile(path) as file:
                rate, length = file.samplerate, file.frames
                first = min(round(start * rate), length)
                last = round(min(stop * rate, length))
                _check_length(max(last - first, 0) * file.channels, rate)
                file.seek(first)
                waveform = file.read(max(last - first, 0), "float32", always_2d=True)
        except FileNotFoundError as error:
            raise MissingModalityError(f"{path} does not exist") from error
        except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
            raise UnreadableMediaError.of(
                results,
                error,
                "Extract the sound again (`ffmpeg -i VIDEO -ac 1 -ar "
                f"{self.sample_rate} NEW.wav`), or delete the file: a clip without "
                "sound is fine",
            ) from error
        if not np.isfinite(waveform).all():
            raise UnreadableMediaError.of(
                results, "the waveform holds NaN or infinity", "Extract it again"
            )
        waveform = waveform.mean(axis=1)
        accepts_silence = results.get("sampling") == "published"
        if not length:
            raise MissingModalityError(f"{path} holds no samples")
        if not len(waveform) and self.span == "segment":
            raise MissingModalityError(
                f"{path} ends at {length / rate:.2f} s, before the segment from "
                f"{start:.2f} to {stop:.2f} s"
            )
        if not len(waveform):
            waveform = np.zeros(1, np.float32)  # behind the track's end
        elif not accepts_silence and np.abs(waveform).max() < self.silence:
            raise MissingModalityError(
                f"{path} is silent between {start:.2f} and {stop:.2f} s"
            )
        if rate != self.sample_rate:
            common = math.gcd(rate, self.sample_rate)
            waveform = scipy.signal.resample_poly(
                waveform, self.sample_rate // common, rate // common
            )
        results["audios"] = waveform
        results["sample_rate"] = self.sample_rate
        results["audio_span"] = (first / rate, last / rate)
        begin = start if self.span == "segment" else 0.0
        results["recorded"] = min(end, length / rate) - begin
        return results


def _check_length(samples: int, rate: int) -> None:
    if samples > MAX_SAMPLES:
        raise ValueError(
            f"its header promises {samples:,} samples at {rate} Hz, and more than "
            f"{MAX_SAMPLES:,} are not read at once (max_seconds of LoadWaveform reads "
            "the start of a long file)"
        )


@TRANSFORMS.register_module()
class TileWaveform(BaseTransform):
    """Repeats or cuts the waveform to a length and clips it to [-1, 1].

    Required and changed key: audios ``(samples,)``.

    Args:
        length: Samples of the result. The published code takes 160,000 (10 s).
    """

    def __init__(self, length: int = 160000) -> None:
        self.length = length

    def transform(self, results: dict) -> dict:
        """Tiles, cuts, clips."""
        # np.resize repeats an array until it fills the new size.
        tiled = np.resize(results["audios"], self.length)
        results["audios"] = np.clip(tiled, -1.0, 1.0)
        return results


# As many at a time as stay in a core's cache. A multiple of the number of windows that
# SciPy transforms together, so that the same ones are, to the bit.
_WINDOWS = 256


def power_spectrogram(
    waveform: np.ndarray, rate: float, nperseg: int, noverlap: int
) -> np.ndarray:
    """:func:`scipy.signal.spectrogram` with its defaults, bit for bit, and faster.

    Power density of windows (Tukey's, 0.25) without their mean. SciPy needs four times
    as long: its arrays have their axes moved, and its window is complex.

    Args:
        waveform: ``(samples,)`` float32 or float64.
        rate: Hz.
        nperseg: Samples of a window.
        noverlap: Samples that neighbouring windows share.

    Returns:
        ``(nperseg // 2 + 1, windows)`` of the same type.
    """
    window, scale = _window(nperseg, float(rate), waveform.dtype.char)
    parts = np.lib.stride_tricks.sliding_window_view(waveform, nperseg)
    parts = parts[:: nperseg - noverlap]
    power = np.empty((len(parts), nperseg // 2 + 1), waveform.dtype)
    for begin in range(0, len(parts), _WINDOWS):
        block = slice(begin, begin + _WINDOWS)
        centred = parts[block] - parts[block].mean(axis=-1, keepdims=True)
        centred *= window
        spectrum = scipy.fft.rfft(centred, axis=-1)
        np.multiply((np.conj(spectrum) * spectrum).real, scale, out=power[block])
    # Negative frequencies count, too; the first and an even last one have none.
    power[:, 1 : -1 if nperseg % 2 == 0 else None] *= 2
    return power.T


@functools.lru_cache(maxsize=8)
def _window(nperseg: int, rate: float, kind: str) -> tuple[np.ndarray, np.floating]:
    as_scipy = scipy.signal.get_window(("tukey", 0.25), nperseg)
    if kind == "f":  # SciPy makes it complex then, and so its sum
        as_scipy = as_scipy.astype(np.complex64)
    return as_scipy.real.copy(), (1 / (rate * (as_scipy * as_scipy).sum())).real


@TRANSFORMS.register_module()
class LogSpectrogram(BaseTransform):
    """Log power spectrogram, normalised over the clip.

    ``log(S + eps)``, minus its mean, over its standard deviation plus 1e-9. ``S`` is
    :func:`scipy.signal.spectrogram`'s power density. With the defaults 160,000
    samples give ``(257, 1004)``, as VGGSound's encoder and the published code have
    it.

    Required keys: audios ``(samples,)``, sample_rate. Changed: audios ``(F, T)``
    float32, ``F = nperseg // 2 + 1``, ``T = (samples - noverlap) // (nperseg -
    noverlap)``.

    Args:
        nperseg: Samples of a window.
        noverlap: Samples that neighbouring windows share.
        eps: Keeps the logarithm finite.
    """

    def __init__(
        self, nperseg: int = 512, noverlap: int = 353, eps: float = 1e-7
    ) -> None:
        if not 0 <= noverlap < nperseg:
            raise ValueError(
                f"noverlap must be in [0, nperseg), got noverlap={noverlap}, "
                f"nperseg={nperseg}"
            )
        self.nperseg, self.noverlap, self.eps = nperseg, noverlap, eps
        # SciPy loads its parts when they are first used: here, once, rather than in
        # each data worker.
        power_spectrogram(np.zeros(nperseg, np.float32), 1.0, nperseg, noverlap)

    def transform(self, results: dict) -> dict:
        """Computes the spectrogram.

        Raises:
            ValueError: If the waveform is shorter than a window.
        """
        waveform = results["audios"]
        if len(waveform) < self.nperseg:
            raise ValueError(
                f"a spectrogram with nperseg={self.nperseg} needs as many samples, "
                f"got {len(waveform)}: put TileWaveform before it"
            )
        power = power_spectrogram(
            waveform, results["sample_rate"], self.nperseg, self.noverlap
        )
        # In float32 the mean of a flat spectrogram would be off by more than 1e-9.
        log = power.astype(np.float64)
        log += self.eps
        np.log(log, out=log)
        log -= log.mean()
        log /= np.sqrt(np.square(log).mean()) + 1e-9  # its standard deviation
        results["audios"] = log.astype(np.float32)
        return results


@TRANSFORMS.register_module()
class SpectrogramNoise(BaseTransform):
    """Adds uniform noise in [-amplitude, amplitude) to every cell. For training.

    Required and changed key: audios ``(F, T)``.
    """

    def __init__(self, amplitude: float = 0.05) -> None:
        self.amplitude = amplitude

    def transform(self, results: dict) -> dict:
        """Draws and adds the noise."""
        audios = results["audios"]
        # What np.random.uniform draws, to the bit, in less time.
        noise = np.random.random_sample(audios.shape)
        noise *= 2 * self.amplitude
        noise -= self.amplitude
        results["audios"] = audios + noise.astype(audios.dtype)
        return results


@TRANSFORMS.register_module()
class FrequencyMask(BaseTransform):
    """Sets consecutive frequency bins to zero, the clip's mean. For training.

    The first bin is uniform over ``0 .. F - width - 2``: with 257 bins and a width of
    9 over 0-246, as in the published code, which never reaches the top two bins.

    Required and changed key: audios ``(F, T)``.

    Args:
        width: Number of bins.
    """

    def __init__(self, width: int = 9) -> None:
        self.width = width

    def transform(self, results: dict) -> dict:
        """Draws the first bin and masks.

        Raises:
            ValueError: If the spectrogram is not higher than the mask.
        """
        audios = results["audios"]
        starts = len(audios) - 1 - self.width
        if starts < 1:
            raise ValueError(
                f"FrequencyMask(width={self.width}) needs more than "
                f"{self.width + 1} frequency bins, got {len(audios)}"
            )
        start = np.random.randint(starts)
        audios = audios.copy()
        audios[start : start + self.width] = 0
        results["audios"] = audios
        return results
