"""Sound tracks of videos, stored as the datasets read them: mono wav files."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import soundfile

from ..errors import UsageError
from .extraction import Extraction, MediaError, NothingToWrite, read_packets

_GAP = Fraction(1, 20)  # s; containers round time stamps to a millisecond or so
_BLOCK = 1 << 20  # samples of silence written at once


@dataclass(frozen=True)
class AudioExtraction(Extraction):
    """The sound track as ``X.wav``: mono, 16 bit, second t is second t of the video.

    Channels are mixed and resampled by FFmpeg's libswresample, as ``ffmpeg -ac 1 -ar
    RATE`` does: stereo is averaged; what exceeds the 16 bits is clipped. A track that
    starts later than the picture begins with silence; what is earlier than the picture
    is left out. Gaps in the time stamps become silence.

    A video without a sound track gets no file: the datasets take a missing file for a
    missing modality.

    Args:
        rate: Samples per second.
    """

    name: ClassVar[str] = "audio"
    nothing: ClassVar[str] = "no sound track"

    rate: int = 16000

    def check(self) -> None:
        """Raises :class:`UsageError` for a rate that is none."""
        if not 1000 <= self.rate <= 192_000:
            raise UsageError(
                f"--rate: got {self.rate}, needs samples per second from 1000 to 192000"
            )

    def outputs(self, stem: Path) -> tuple[Path]:
        """The wav file."""
        return (stem.with_name(f"{stem.name}.wav"),)

    def write(self, source: Path, targets: tuple[Path]) -> None:
        """Decodes, mixes, resamples and writes, a packet at a time.

        Raises:
            MediaError: If the video is cut off or its time stamps lie behind its end.
            NothingToWrite: If there is no sound track, or nothing in it.
        """
        with av.open(str(source)) as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise NothingToWrite
            start = _picture_start(container)
            with WavTimeline(targets[0], self.rate, start) as wav:
                for packet in read_packets(container):
                    if packet.stream.index != stream.index:
                        continue
                    for frame in packet.decode():
                        _check_time(frame, container)
                        wav.add(frame)
            if not wav.written:
                raise NothingToWrite("the track is empty")


def _picture_start(container: av.container.InputContainer) -> Fraction:
    """When the first video frame is shown, in seconds of the container's clock."""
    video = container.streams.best("video")
    if video is not None and video.start_time is not None:
        return video.start_time * video.time_base
    return Fraction(container.start_time or 0, av.time_base)


def _check_time(frame: av.AudioFrame, container: av.container.InputContainer) -> None:
    """Refuses a broken time stamp, which would become hours of silence."""
    end = (container.duration or 0) / av.time_base
    if end and frame.time is not None and frame.time > end + 10:
        raise MediaError(
            f"a time stamp of its sound is {frame.time:.1f} s, in a file of {end:.1f} s"
        )


class WavTimeline:
    """A mono 16-bit wav file that is written along a clock.

    Silence fills what no frame covers, and what is covered twice or lies before the
    start is left out. There is no file before the first sample.

    Args:
        path: Where to write.
        rate: Samples per second.
        start: The time of sample 0, in seconds of the frames' clock.

    Attributes:
        written: Samples in the file so far.
    """

    def __init__(self, path: Path, rate: int, start: Fraction = Fraction(0)) -> None:
        self.path, self.rate, self.start = path, rate, start
        self.written = 0
        self._file: soundfile.SoundFile | None = None
        self._resampler: av.AudioResampler | None = None
        self._kind: tuple | None = None  # of the frames that the resampler is set to
        self._due = Fraction(0)  # when the next frame should start
        self._place = 0  # the sample that the resampler gives next

    def __enter__(self) -> "WavTimeline":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            if self._file is not None:
                self._file.close()

    def add(self, frame: av.AudioFrame) -> None:
        """Writes a decoded frame at its time."""
        time = self._due
        if frame.pts is not None:
            time = frame.pts * frame.time_base - self.start
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind or abs(time - self._due) > _GAP:
            self._flush()
            self._resampler = av.AudioResampler("s16", "mono", self.rate)
            self._kind, self._due = kind, time
            self._place = round(time * self.rate)
        self._write_all(self._resampler.resample(frame))
        self._due += Fraction(frame.samples, frame.sample_rate)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._write_all(self._resampler.resample(None))

    def _write_all(self, frames: list[av.AudioFrame | None]) -> None:
        for frame in frames:
            # PyAV flushes a resampler that has nothing to do with a None.
            if frame is not None:
                self._write(frame.to_ndarray()[0])

    def _write(self, samples: np.ndarray) -> None:
        begin = max(self.written - self._place, 0)
        missing = max(self._place - self.written, 0)
        self._place += len(samples)
        samples = samples[begin:]
        if not len(samples):
            return
        if self._file is None:
            self._file = soundfile.SoundFile(
                self.path, "w", self.rate, 1, subtype="PCM_16", format="WAV"
            )
        for block in _silence(missing):
            self._file.write(block)
        self._file.write(samples)
        self.written += missing + len(samples)


def _silence(count: int) -> Iterator[np.ndarray]:
    for first in range(0, count, _BLOCK):
        yield np.zeros(min(_BLOCK, count - first), np.int16)
