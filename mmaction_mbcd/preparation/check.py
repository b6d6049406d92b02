"""Reads every file that a run will read, before it does, and lists what is wrong.

::

    collect      the config's datasets -> clips: rows, each once
    media        a clip's files -> Video, Sound, Frames or Other, the units of work
    inspect_all  reads every file once, in processes that may die -> facts
    judge        a clip and the facts -> findings
    Report       tables, the first findings, CSV

A file that many rows share (an hour of sound, a folder of frames) is read once; the
rows look up what was found in their part of it. Frames of a folder that no row needs
are not read.

============ ==========================================================================
kind         what it means
============ ==========================================================================
missing      no such file or folder, or a frame of the segment is not there
empty        0 bytes
truncated    cut off, damaged inside, or the container's index contradicts its content:
             at best a part of it decodes
unreadable   nothing decodes, the codec is unknown, frames differ in size, or the two
             components of flow do in size or by more than one frame in length
silent       sound that never reaches the threshold of the pipeline's ``LoadWaveform``
too_short    a segment without frames; no sound in the clip's time, or less of it than
             one window of the spectrogram
============ ==========================================================================

A clip with fewer frames than the sampled window is no problem: it repeats. These are
counted.

The criteria are those of the loading transforms, and stricter for videos, of which
training decodes a few frames only. A JPEG that was overwritten in the middle passes
here as it does in training: libjpeg makes some picture of it.
"""

import csv
import io
import math
import multiprocessing
import os
import pickle
import signal
import statistics
import struct
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import NamedTuple

import av
import cv2
import decord
import numpy as np
import soundfile
from mmaction.datasets.transforms import SampleFrames
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from ..cli import SPLITS, UsageError
from ..datasets import MultiModalDataset
from ..datasets.transforms import LoadWaveform, LogSpectrogram, OpenVideo
from ..datasets.transforms.audio import PUBLISHED_FPS
from ..datasets.transforms.frames import decode_image
from ..datasets.transforms.loading import DECODER_ERRORS
from ..datasets.transforms.readers import PacketIndex, PyAVReader, index_packets
from .jobs import MediaError, read_packets

KINDS = ("missing", "empty", "truncated", "unreadable", "silent", "too_short")

COLUMNS = ("domain", "class", "sample_id", "modality", "kind", "file", "reason")
"""Of the CSV file."""

SILENCE = 1e-4
"""Where a pipeline has no ``LoadWaveform`` that says it, sound below this is silent.

-80 dB of full scale, three steps of a 16-bit file: ``LoadWaveform``'s default, so that
what is called silent here is what training would take for absent.
"""

DECODED = 0.9
"""Share of a video's frames that must decode.

Not all, because some codecs have packets that show no picture.
"""

SHOWN = 20
"""Problems that are printed; the CSV file has all."""

_SECONDS = 120
"""A file may take this long to read, and a second more for each megabyte or frame."""

_CHUNK = 256  # frames of a folder per task: a second or so
_BLOCK = 1 << 20  # samples of sound read at once
_ADMITTED = "absent, admitted by optional_modalities"


class Fault(NamedTuple):
    """What is wrong with a file: one of :data:`KINDS`, and the reason."""

    kind: str
    reason: str


# --------------------------------------------------------------------------------
# Files


@dataclass
class VideoFacts:
    """Of a video file: its fault if any, frames, frames per second, ``(h, w)``."""

    fault: Fault | None = None
    frames: int = 0
    fps: float = 0.0
    size: tuple[int, int] | None = None


@dataclass
class SoundFacts:
    """Of a sound file.

    Attributes:
        fault: What concerns all of it.
        cut: Why it ends early, if it does.
        samples: That can be read.
        rate: In Hz.
        peaks: ``{(start, stop) in seconds: greatest amplitude of the mono signal}``;
            infinite where it is no number. Not measured if quick.
    """

    fault: Fault | None = None
    cut: str = ""
    samples: int = 0
    rate: int = 0
    peaks: dict[tuple[float, float], float] = field(default_factory=dict)


@dataclass
class FrameFacts:
    """Of some frames of a folder.

    Attributes:
        fault: Of the folder.
        faults: ``{frame number: its fault}``.
        sizes: ``{(h, w): frame numbers}``. Empty if quick.
    """

    fault: Fault | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    sizes: dict[tuple[int, int], list[int]] = field(default_factory=dict)


@dataclass
class OtherFacts:
    """Of a file of a kind that is not known here."""

    fault: Fault | None = None


Facts = VideoFacts | SoundFacts | FrameFacts | OtherFacts


def _absent_or_empty(path: str) -> Fault | None:
    if not os.path.exists(path):
        return Fault("missing", "no such file")
    if os.path.isdir(path):
        return Fault("unreadable", "it is a folder, not a file")
    if not os.path.getsize(path):
        return Fault("empty", "the file has 0 bytes")
    return None


def _says(error: BaseException) -> str:
    # Of OSError and FFmpeg, of libsndfile; neither repeats the file's name.
    own = (getattr(error, name, None) for name in ("strerror", "error_string"))
    text = next(filter(None, own), str(error))
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cut_mp4(data: bytes) -> str:
    """Where an MP4 file was cut off, or ``''``.

    It is a sequence of boxes that say their size; a player needs ``moov`` (the index)
    and ``mdat`` (the pictures). What follows these two does not matter.
    """
    if data[4:8] != b"ftyp":
        return ""
    place, found = 0, set()
    while place + 8 <= len(data) and not {b"moov", b"mdat"} <= found:
        size, name = struct.unpack_from(">I4s", data, place)
        if size == 1 and place + 16 <= len(data):
            size = struct.unpack_from(">Q", data, place + 8)[0]
        elif size == 0:  # up to the end
            size = len(data) - place
        if size < 8:
            return ""
        if place + size > len(data):
            return (
                f"it is cut off: its part {name.decode('latin-1')!r} ends at byte "
                f"{place + size}, the file at byte {len(data)}"
            )
        found.add(name)
        place += size
    lacks = [name for name in ("moov", "mdat") if name.encode() not in found]
    return f"it is cut off before its part {lacks[0]!r}" if lacks else ""


def _lost(data: bytes) -> str:
    """What a container promises and does not hold, or ``''``.

    Raises:
        av.FFmpegError: If it is no container.
    """
    end = 0
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        try:
            for packet in read_packets(container):
                if packet.stream_index == stream.index and packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or 0))
        except MediaError as error:
            return str(error)
        # An index knows the last frame; a header rounds.
        if stream.frames and stream.duration and stream.average_rate:
            lost = (stream.start_time or 0) + stream.duration - end
            seconds = float(lost * stream.time_base)
            if seconds > 2 / float(stream.average_rate):
                return f"the last {seconds:.1f} s of its index are not in the file"
    return ""


class _Decoded(NamedTuple):
    frames: int
    error: str  # the first
    sizes: set[tuple[int, int]]  # (h, w)


def _decode(data: bytes) -> _Decoded:
    """Decodes all of a video and keeps nothing of it."""
    frames, error, sizes = 0, "", set()
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                return _Decoded(0, "the codec is unknown", sizes)
            stream.codec_context.thread_count = 1
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except DECODER_ERRORS as fault:
                    error = error or f"frame {frames}: {_says(fault)}"
                    continue
                for picture in pictures:
                    if picture.is_corrupt:
                        error = error or f"frame {frames} is damaged"
                    frames += 1
                    sizes.add((picture.height, picture.width))
    except DECODER_ERRORS as fault:
        error = error or _says(fault)
    return _Decoded(frames, error, sizes)


@dataclass(frozen=True)
class Video:
    """A video file.

    Attributes:
        path: The file.
        reader: What training opens it with, ``'decord'`` or ``'pyav'``.
    """

    path: str
    reader: str = "decord"

    def inspect(self, _: None, quick: bool) -> VideoFacts:
        """Reads index and packets, and decodes all frames unless ``quick``."""
        if fault := _absent_or_empty(self.path):
            return VideoFacts(fault)
        with open(self.path, "rb") as file:
            data = file.read()
        cut = _cut_mp4(data)
        try:
            index = index_packets(data)
            reader = PyAVReader(data, index=index)
            cut = cut or _lost(data)
        except DECODER_ERRORS as error:
            kind = "truncated" if cut or _decode(data).frames else "unreadable"
            return VideoFacts(Fault(kind, cut or _says(error)))
        facts = VideoFacts(frames=len(reader))
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            facts.fps = float(stream.average_rate or stream.guessed_rate or 0)
            facts.size = (stream.codec_context.height, stream.codec_context.width)
        if cut:
            facts.fault = Fault("truncated", cut)
        elif not facts.frames:
            facts.fault = Fault("unreadable", "the file has no frames with a time")
        else:
            if not quick:
                facts.fault = self._decoding_fault(facts, _decode(data))
            facts.fault = facts.fault or self._opening_fault(data, index)
        return facts

    def _opening_fault(self, data: bytes, index: PacketIndex) -> Fault | None:
        """Whether decord, whose FFmpeg is an old one, refuses what PyAV accepts."""
        if self.reader == "decord" and index.access == "decord":
            try:
                decord.VideoReader(io.BytesIO(data), num_threads=1)
            except DECODER_ERRORS as error:
                return Fault("unreadable", f"decord cannot open it: {_says(error)}")
        return None

    @staticmethod
    def _decoding_fault(facts: VideoFacts, decoded: _Decoded) -> Fault | None:
        counted = f"{decoded.frames} of {facts.frames} frames decode"
        if not decoded.frames:
            return Fault("unreadable", f"{counted}; {decoded.error or 'no error'}")
        if decoded.error:
            return Fault("truncated", f"{counted}; {decoded.error}")
        if decoded.frames < DECODED * facts.frames:
            return Fault("truncated", f"{counted} (does it begin with a key frame?)")
        if len(decoded.sizes) > 1:
            sizes = sorted(decoded.sizes)
            return Fault("unreadable", f"its frames differ in size (h, w): {sizes}")
        return None


def _cut_wav(path: str) -> str:
    """Where a RIFF file was cut off, or ``''``.

    libsndfile reads what is there and does not say that there was more.
    """
    total = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return ""
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                # A writer to a pipe cannot know the size and leaves this.
                if size in (0, 0xFFFFFFFF) or file.tell() + size <= total:
                    return ""
                size += file.tell()
                return f"it is cut off: of its {size} bytes {total} are there"
            file.seek(size + size % 2, os.SEEK_CUR)
    return f"it is cut off after {total} bytes, before the sound begins"


@dataclass(frozen=True)
class Sound:
    """A sound file."""

    path: str

    def inspect(self, spans: Iterable[tuple[float, float]], quick: bool) -> SoundFacts:
        """Reads the header, and all samples unless ``quick``.

        Args:
            spans: (start, stop) in seconds of the parts whose peak is wanted.
            quick: Header only.
        """
        if fault := _absent_or_empty(self.path):
            return SoundFacts(fault)
        cut = _cut_wav(self.path)
        try:
            file = soundfile.SoundFile(self.path)
        except (soundfile.SoundFileError, OSError) as error:
            kind = "truncated" if cut else "unreadable"
            return SoundFacts(Fault(kind, cut or _says(error)))
        with file:
            facts = SoundFacts(cut=cut, samples=file.frames, rate=file.samplerate)
            if quick:
                return facts
            wanted = {s: samples_of(s, facts.rate, facts.samples) for s in spans}
            facts.peaks = dict.fromkeys(wanted, 0.0)
            place = 0
            try:
                while len(block := file.read(_BLOCK, "float32", always_2d=True)):
                    sound = np.abs(block.mean(axis=1))
                    sound[~np.isfinite(sound)] = np.inf
                    for span, (first, last) in wanted.items():
                        part = sound[max(first - place, 0) : max(last - place, 0)]
                        if len(part):
                            peak = max(facts.peaks[span], float(part.max()))
                            facts.peaks[span] = peak
                    place += len(block)
            except (soundfile.SoundFileError, OSError) as error:
                facts.cut = facts.cut or _says(error)
            if place < facts.samples:
                facts.cut = facts.cut or f"{place} of {facts.samples} samples decode"
                facts.samples = place
            if not place and facts.cut:
                facts.fault = Fault("unreadable", facts.cut)
        return facts


def samples_of(span: tuple[float, float], rate: int, samples: int) -> tuple[int, int]:
    """First sample of a span in seconds and the one after its last, in the file.

    Rounded as ``LoadWaveform`` does.
    """
    first = min(round(span[0] * rate), samples)
    return first, max(round(min(span[1] * rate, samples)), first)


@dataclass(frozen=True)
class Frames:
    """Images of a folder, by number.

    Attributes:
        path: The folder.
        template: Their names, for ``str.format`` with the number.
        grey: They are decoded to one channel, as flow is.
    """

    path: str
    template: str
    grey: bool = False

    def file(self, number: int) -> str:
        """Path of one frame."""
        return os.path.join(self.path, self.template.format(number))

    def inspect(self, numbers: Iterable[int], quick: bool) -> FrameFacts:
        """Decodes the frames; looks only whether they are there if ``quick``."""
        if not os.path.exists(self.path):
            return FrameFacts(Fault("missing", "no such folder"))
        facts = FrameFacts()
        for number in numbers:
            fault = None
            try:
                with open(self.file(number), "rb") as file:
                    if not os.fstat(file.fileno()).st_size:
                        fault = Fault("empty", "the file has 0 bytes")
                    elif not quick:
                        size = decode_image(file.read(), self.grey).shape[:2]
                        facts.sizes.setdefault(size, []).append(number)
            except FileNotFoundError:
                fault = Fault("missing", "no such frame")
            except (OSError, ValueError) as error:
                cut = "cut off" in str(error)
                fault = Fault("truncated" if cut else "unreadable", _says(error))
            if fault:
                facts.faults[number] = fault
        return facts


@dataclass(frozen=True)
class Other:
    """A file of a modality that is neither pictures nor sound."""

    path: str

    def inspect(self, _: None, quick: bool) -> OtherFacts:
        """Looks whether it is there."""
        return OtherFacts(_absent_or_empty(self.path))


Medium = Video | Sound | Frames | Other

_FACTS = {Video: VideoFacts, Sound: SoundFacts, Frames: FrameFacts, Other: OtherFacts}


# --------------------------------------------------------------------------------
# Processes


class Job(NamedTuple):
    """A file to read, or a range of frames, with what is wanted of it."""

    medium: Medium
    detail: tuple[tuple[float, float], ...] | range | None

    @property
    def files(self) -> int:
        """Number of files that it reads."""
        return len(self.detail) if isinstance(self.medium, Frames) else 1

    @property
    def seconds(self) -> float:
        """How long it may take."""
        if isinstance(self.medium, Frames):
            return _SECONDS + self.files
        try:
            return _SECONDS + os.path.getsize(self.medium.path) / 1e6
        except OSError:
            return _SECONDS

    def halves(self) -> list["Job"]:
        """Two jobs instead of this one; none if it is a single file."""
        if self.files < 2:
            return []
        middle = self.files // 2
        return [
            Job(self.medium, part)
            for part in (self.detail[:middle], self.detail[middle:])
        ]

    def failed(self, reason: str) -> Facts:
        """Facts for a file that cannot be read for this reason."""
        fault = Fault("unreadable", reason)
        if isinstance(self.medium, Frames):
            return FrameFacts(faults=dict.fromkeys(self.detail, fault))
        return _FACTS[type(self.medium)](fault)


def _serve(pipe: connection.Connection, parent: int, quick: bool) -> None:
    """A worker process: answers jobs with facts until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    cv2.setNumThreads(1)
    # libjpeg and FFmpeg write into the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        while not pipe.poll(5):
            if os.getppid() != parent:
                return
        job = pipe.recv()
        if job is None:
            return
        try:
            facts = job.medium.inspect(job.detail, quick)
        except Exception as error:
            facts = job.failed(f"{type(error).__name__}: {_says(error)}")
        pipe.send(facts)


class _Worker:
    """A process that reads one job after the other, and may die of it."""

    def __init__(self, quick: bool) -> None:
        # Forked workers start at once; others would import torch first.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in methods else None)
        self.pipe, end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(end, os.getpid(), quick), daemon=True
        )
        self.process.start()
        end.close()
        self.job: Job | None = None
        self.deadline = math.inf

    def give(self, job: Job) -> None:
        self.job, self.deadline = job, time.monotonic() + job.seconds
        # A process that died while idle is found dead by answer().
        try:
            self.pipe.send(job)
        except OSError:
            pass

    def answer(self) -> tuple[Facts | None, str]:
        """The facts, or why there will be none; neither while it works."""
        alive = self.process.is_alive()  # asked first: it may answer and then die
        try:
            if self.pipe.poll():
                return self.pipe.recv(), ""
        except (EOFError, OSError):
            self.process.join(1)
            alive = self.process.is_alive()
        if not alive:
            code = self.process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            return None, f"decoding it killed the process ({how})"
        if time.monotonic() > self.deadline:
            return None, f"not read within {self.job.seconds:.0f} s"
        return None, ""

    def end(self) -> None:
        if not self.job:
            try:
                self.pipe.send(None)
                self.process.join(1)
            except OSError:
                pass
        self.process.kill()
        self.process.join()
        self.pipe.close()


def inspect_all(
    jobs: Iterable[Job],
    workers: int,
    quick: bool = False,
    advance: Callable[[int], object] = lambda files: None,
) -> dict[Medium, Facts]:
    """Reads every file, in processes of their own.

    FFmpeg may kill its process over a damaged file, or never return. Such a file is
    unreadable, and a new process goes on; of several frames the culprit is searched for
    by halves.

    Args:
        jobs: What to read.
        workers: Number of processes.
        quick: Headers, indices and existence only.
        advance: Called with the number of files that were just read.

    Returns:
        dict: What was found, for each medium.
    """
    waiting = deque(jobs)
    found: dict[Medium, Facts] = {}
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.job for worker in pool):
            for worker in pool:
                if waiting and not worker.job:
                    worker.give(waiting.popleft())
            while waiting and len(pool) < workers:
                pool.append(_Worker(quick))
                pool[-1].give(waiting.popleft())
            busy = [worker for worker in pool if worker.job]
            ends = [each for w in busy for each in (w.pipe, w.process.sentinel)]
            limit = min(worker.deadline for worker in busy) - time.monotonic()
            connection.wait(ends, max(limit, 0) + 0.01)
            for worker in busy:
                facts, failure = worker.answer()
                job = worker.job
                if facts is None and not failure:
                    continue
                if failure:
                    pool.remove(worker)
                    worker.end()
                    if halves := job.halves():
                        waiting.extendleft(halves)
                        continue
                    facts = job.failed(failure)
                worker.job = None
                advance(job.files)
                _merge(found, job.medium, facts)
    finally:
        for worker in pool:
            worker.end()
    return found


def _merge(found: dict[Medium, Facts], medium: Medium, facts: Facts) -> None:
    known = found.setdefault(medium, facts)
    if known is not facts and isinstance(facts, FrameFacts):
        known.fault = known.fault or facts.fault
        known.faults.update(facts.faults)
        for size, numbers in facts.sizes.items():
            known.sizes.setdefault(size, []).extend(numbers)


# --------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True)
class Need:
    """What a pipeline will ask of its files.

    Attributes:
        kind: The host's kind of the modality: ``'RGB'``, ``'Flow'`` or ``'Audio'``.
        clip_len: Frames of a sampled clip; 0 without a sampler.
        interval: Frames from one of them to the next.
        centred: The clip is the middle one; else it begins anywhere.
        reader: Of video files.
        span: Of sound, see ``LoadWaveform``; ``''`` without one.
        span_from: Modalities whose frames are its span.
        span_fps: For turning those frames into time; None asks their file.
        max_seconds: Of sound that are read; None: all.
        silence: Amplitude that sound must reach.
        sample_rate: Of the spectrogram, in Hz; 0: the file's.
        window: Samples that a spectrogram needs.
    """

    kind: str
    clip_len: int = 0
    interval: int = 1
    centred: bool = False
    reader: str = "decord"
    span: str = ""
    span_from: tuple[str, ...] = ()
    span_fps: float | None = None
    max_seconds: float | None = None
    silence: float = SILENCE
    sample_rate: int = 0
    window: int = 1

    @classmethod
    def of(
        cls, kind: str, pipeline: Iterable[object], sampling: str = "repaired"
    ) -> "Need":
        """Of a pipeline that was built, of a dataset with this ``sampling``."""
        published = sampling == "published"
        facts = {}
        for step in pipeline:
            # A stock sampler with target_fps has no window that is known beforehand.
            if isinstance(step, SampleFrames) and step.target_fps is None:
                facts |= dict(
                    clip_len=step.clip_len,
                    interval=step.frame_interval,
                    centred=step.test_mode,
                )
            elif isinstance(step, OpenVideo):
                facts["reader"] = step.reader
            elif isinstance(step, LoadWaveform):
                facts |= dict(
                    span=step.span,
                    span_from=tuple(step.span_from),
                    span_fps=step.span_fps or (PUBLISHED_FPS if published else None),
                    max_seconds=step.max_seconds,
                    silence=0.0 if published else step.silence,
                    sample_rate=step.sample_rate,
                )
            elif isinstance(step, LogSpectrogram):
                facts["window"] = step.nperseg
        return cls(kind, **facts)

    @property
    def frames(self) -> int:
        """From the first to the last frame of a sampled clip."""
        return (self.clip_len - 1) * self.interval + 1 if self.clip_len else 0

    def latest(self, frames: int) -> int:
        """The last frame that a clip of a video of so many frames may begin with."""
        if self.centred:
            return max(frames - self.frames, 0) // 2
        return max(frames - self.clip_len * self.interval, 0)

    def seconds(self, row: Mapping) -> tuple[float, float]:
        """The part of a sound file that belongs to a row."""
        start, stop = 0.0, math.inf
        if self.span == "segment" or (not self.span and "start" in row):
            start, stop = float(row.get("start", 0)), float(row.get("stop", math.inf))
        # Which part of a whole file is read depends on the draw: take all of it.
        if self.max_seconds is not None and self.span != "frames":
            stop = min(stop, start + self.max_seconds)
        return start, stop


@dataclass
class Clip:
    """A row, and what the datasets that have it will do with it.

    Attributes:
        row: As the dataset gives it.
        label: Name of its class.
        uses: How often it stands in train, val and test.
        roles: ``'source'``, ``'target'``.
        needs: ``{modality: what the pipelines ask}``.
        required: Modalities that some dataset does not admit to be absent.
    """

    row: dict
    label: str
    uses: Counter = field(default_factory=Counter)
    roles: set[str] = field(default_factory=set)
    needs: dict[str, dict[Need, None]] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)

    @property
    def domain(self) -> str:
        """Its domain."""
        return self.row["domain"]

    @property
    def group(self) -> tuple[str, str]:
        """Domain and role."""
        return self.domain, ", ".join(sorted(self.roles))

    def extras(self, modality: str) -> dict:
        """What the row says about one modality."""
        return (self.row.get("extras") or {}).get(modality) or {}

    def media(self, modality: str, need: Need) -> list[Medium]:
        """The files of one modality."""
        names = self.row["files"].get(modality) or ()
        template = self.extras(modality).get("filename_tmpl")
        media: list[Medium] = []
        for name in (names,) if isinstance(names, (str, os.PathLike)) else names:
            name = os.fspath(name)
            if need.kind == "Audio":
                media.append(Sound(name))
            elif template is not None:
                media.append(Frames(name, template, grey=need.kind == "Flow"))
            elif need.kind in ("RGB", "Flow"):
                media.append(Video(name, need.reader))
            else:
                media.append(Other(name))
        return media

    def segment(self, modality: str) -> tuple[int, int | None]:
        """First frame and number of frames, None: all there are."""
        extras = self.extras(modality)
        return extras.get("start_index", 0), extras.get("total_frames")


def _innermost(dataset: object) -> Iterator[object]:
    """The datasets inside any ConcatDataset or RepeatDataset."""
    inner = getattr(dataset, "datasets", None) or getattr(dataset, "dataset", None)
    if inner is None:
        yield dataset
    else:
        for each in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _innermost(each)


def build_datasets(cfg: Config) -> Iterator[tuple[str, MultiModalDataset]]:
    """Builds the datasets of a config, with the split whose loader has each.

    Raises:
        UsageError: If there is none or one cannot be built, with its own message, or if
            one is no :class:`MultiModalDataset`.
    """
    init_default_scope(cfg.get("default_scope") or "mmaction")
    loaders = {split: cfg.get(f"{split}_dataloader") for split in SPLITS}
    if not any(loaders.values()):
        raise UsageError(
            "the config has no train_dataloader, val_dataloader or test_dataloader: "
            "there is nothing to check"
        )
    for split, loader in loaders.items():
        if not loader:
            continue
        try:
            built = DATASETS.build(loader["dataset"])
            datasets = list(_innermost(built))
            for dataset in datasets:
                if hasattr(dataset, "full_init"):
                    dataset.full_init()
        except (
            *(ValueError, TypeError, KeyError, OSError),
            pickle.UnpicklingError,
        ) as error:
            raise UsageError(f"{split}_dataloader: {error}") from error
        for dataset in datasets:
            if not isinstance(dataset, MultiModalDataset):
                raise UsageError(
                    f"{split}_dataloader: {type(dataset).__name__} is no "
                    "MultiModalDataset, so it is not known which files it reads"
                )
            yield split, dataset


def collect(cfg: Config) -> list[Clip]:
    """The clips of all datasets of a config, each once.

    Raises:
        UsageError: As :func:`build_datasets`.
    """
    clips: dict[str, Clip] = {}
    for split, dataset in build_datasets(cfg):
        classes = dataset.metainfo["classes"]
        needs = {
            modality: Need.of(
                dataset.MODALITY_TYPES[modality],
                dataset.pipelines[modality],
                dataset.sampling,
            )
            for modality in dataset.modalities
        }
        required = set(dataset.modalities) - set(dataset.optional_modalities)
        for index in range(len(dataset)):
            row = dataset.get_data_info(index)
            same = ("domain", "sample_id", "files", "extras", "start", "stop")
            key = repr([row.get(name) for name in same])
            clip = clips.setdefault(key, Clip(row, str(classes[row["label"]])))
            clip.uses[split] += 1
            clip.roles.add(row["role"])
            clip.required |= required
            for modality, need in needs.items():
                clip.needs.setdefault(modality, {})[need] = None
    return list(clips.values())


def plan(clips: Iterable[Clip]) -> list[Job]:
    """What has to be read for the clips, every file once."""
    spans: dict[Medium, dict] = defaultdict(dict)
    ranges: dict[Medium, list[tuple[int, int]]] = defaultdict(list)
    jobs: dict[Medium, None] = {}
    for clip in clips:
        for modality, needs in clip.needs.items():
            start, total = clip.segment(modality)
            for need in needs:
                for medium in clip.media(modality, need):
                    if isinstance(medium, Sound):
                        spans[medium][need.seconds(clip.row)] = None
                    elif isinstance(medium, Frames):
                        ranges[medium].append((start, start + max(total or 0, 0)))
                    else:
                        jobs[medium] = None
    return [
        *(Job(medium, None) for medium in jobs),
        *(Job(medium, tuple(wanted)) for medium, wanted in spans.items()),
        *(Job(medium, part) for medium, r in ranges.items() for part in _chunks(r)),
    ]


def _chunks(ranges: list[tuple[int, int]]) -> Iterator[range]:
    """The numbers of overlapping ``[start, stop)``, each once, in pieces.

    At least one piece, which may be empty, so that the folder is looked at.
    """
    joined: list[list[int]] = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    for start, stop in joined:
        for first in range(start, max(stop, start + 1), _CHUNK):
            yield range(first, min(first + _CHUNK, stop))


# --------------------------------------------------------------------------------
# Judgement


class Finding(NamedTuple):
    """A problem of one modality of a clip.

    Attributes:
        modality: Our name of it.
        kind: One of :data:`KINDS`.
        file: The culprit.
        reason: In words.
        absent: The modality is not there at all, which a dataset may admit.
    """

    modality: str
    kind: str
    file: str
    reason: str
    absent: bool = False


@dataclass
class Verdict:
    """What is known about a clip.

    Attributes:
        clip: The clip.
        problems: What is wrong with it.
        admitted: Modalities that it lacks and may lack.
        seconds: Its length; None if no modality tells.
        repeats: ``{(modality, window in frames)}`` that are longer than the clip.
        sound_ends: A sampled clip may begin after its sound has ended.
    """

    clip: Clip
    problems: list[Finding] = field(default_factory=list)
    admitted: list[Finding] = field(default_factory=list)
    seconds: float | None = None
    repeats: set[tuple[str, int]] = field(default_factory=set)
    sound_ends: bool = False


class _Length(NamedTuple):
    """Frames (or samples) of a clip, and how many a second has; 0: not known."""

    count: int
    rate: float

    @property
    def seconds(self) -> float | None:
        return self.count / self.rate if self.rate else None


def judge(clip: Clip, facts: Mapping[Medium, Facts]) -> Verdict:
    """Looks up what was found in the files of a clip."""
    verdict = Verdict(clip)
    lengths: dict[str, _Length] = {}
    found: dict[Finding, None] = {}
    for modality, needs in clip.needs.items():
        for need in needs:
            own, length = _judge(clip, modality, need, facts)
            found |= dict.fromkeys(own)
            if length:
                lengths[modality] = length
            if length and length.count < need.frames:
                verdict.repeats.add((modality, need.frames))
    absent = {finding.modality for finding in found if finding.absent}
    nothing = absent >= set(clip.needs)
    for finding in found:
        admit = finding.absent and finding.kind == "missing" and not nothing
        if admit and finding.modality not in clip.required:
            verdict.admitted.append(finding)
        else:
            verdict.problems.append(finding)
    row = clip.row
    if "start" in row and "stop" in row:
        verdict.seconds = row["stop"] - row["start"]
    else:
        told = (length.seconds for length in lengths.values())
        verdict.seconds = next((x for x in told if x is not None), None)
    verdict.sound_ends = _sound_ends(clip, lengths)
    return verdict


def _judge(
    clip: Clip, modality: str, need: Need, facts: Mapping[Medium, Facts]
) -> tuple[list[Finding], _Length | None]:
    """What is wrong with one modality; its length if nothing is."""
    media = clip.media(modality, need)
    start, total = clip.segment(modality)

    def say(kind: str, medium: str | Medium, reason: str, **kwargs) -> Finding:
        path = medium if isinstance(medium, str) else medium.path
        return Finding(modality, kind, path, reason, **kwargs)

    if total is not None and total < 1:
        path = media[0].path if media else ""
        reason = f"the segment has {total} frames"
        return [say("too_short", path, reason, absent=not media)], None
    if not media:
        return [say("missing", "", "the row has no file for it", absent=True)], None
    problems = []
    for medium in media:
        known = facts[medium]
        if known.fault:
            gone = known.fault.kind == "missing"
            problems.append(
                say(known.fault.kind, medium, known.fault.reason, absent=gone)
            )
        elif isinstance(medium, Frames):
            if total is None:
                reason = "the row names no total_frames, so its frames are not known"
                problems.append(say("unreadable", medium, reason))
            else:
                problems += [
                    say(kind, path, reason)
                    for kind, path, reason in _frame_faults(medium, known, start, total)
                ]
    if problems:
        return problems, None
    first = media[0]
    if isinstance(first, Sound):
        fault, length = _sound_fault(need, clip.row, facts[first])
        return ([say(fault.kind, first, fault.reason)], None) if fault else ([], length)
    if isinstance(first, Other):
        return [], None
    extras = clip.extras(modality)
    if isinstance(first, Frames):
        sizes = [_sizes(facts[medium], start, total) for medium in media]
        length = _Length(total, extras.get("avg_fps") or 0)
    else:
        sizes = [{facts[medium].size} for medium in media]
        counts = [facts[medium].frames for medium in media]
        total = min(counts) if total is None else total
        length = _Length(total, facts[first].fps or extras.get("avg_fps") or 0)
        if max(counts) - min(counts) > 1:
            shortest = media[counts.index(min(counts))]
            reason = (
                f"the components of flow have {' and '.join(map(str, counts))} frames"
            )
            problems.append(say("unreadable", shortest, reason))
        elif start + total > min(counts):
            reason = (
                f"the segment is frames {start} to {start + total - 1} of a file of "
                f"{min(counts)}"
            )
            problems.append(say("missing", first, reason))
    for medium, size in zip(media[1:], sizes[1:], strict=True):
        if size and sizes[0] and size != sizes[0]:
            h_w = " and ".join(str(next(iter(s))) for s in (sizes[0], size))
            reason = f"the components of flow have frames of {h_w} pixels (h, w)"
            problems.append(say("unreadable", medium, reason))
    return problems, None if problems else length


def _sizes(facts: FrameFacts, start: int, total: int) -> set[tuple[int, int]]:
    if len(facts.sizes) < 2:
        return set(facts.sizes)
    segment = range(start, start + total)
    return {
        size
        for size, numbers in facts.sizes.items()
        if any(n in segment for n in numbers)
    }


def _frame_faults(
    medium: Frames, facts: FrameFacts, start: int, total: int
) -> Iterator[tuple[str, str, str]]:
    """Kind, file and reason; one for each kind, however many frames have it."""
    segment = range(start, start + total)
    by_kind: dict[str, list[int]] = defaultdict(list)
    for number in (n for n in segment if n in facts.faults):
        by_kind[facts.faults[number].kind].append(number)
    for kind, numbers in by_kind.items():
        reason = facts.faults[numbers[0]].reason
        more = f" (and {len(numbers) - 1} more frames of the segment)"
        yield kind, medium.file(numbers[0]), reason + more * (len(numbers) > 1)
    sizes = _sizes(facts, start, total)
    if len(sizes) > 1:
        reason = f"frames of the segment differ in size (h, w): {sorted(sizes)}"
        yield "unreadable", medium.path, reason


def _sound_fault(
    need: Need, row: Mapping, facts: SoundFacts
) -> tuple[Fault | None, _Length]:
    span = need.seconds(row)
    first, last = samples_of(span, facts.rate, facts.samples)
    length = _Length(last - first, facts.rate)
    part = "in it"
    if span != (0.0, math.inf):
        part = f"between {span[0]:.2f} and {span[1]:.2f} s"
    # A segment before the cut is intact.
    if facts.cut and span[1] * facts.rate > facts.samples:
        return Fault("truncated", facts.cut), length
    ends = f"the file ends at {facts.samples / facts.rate:.2f} s"
    if not length.count:
        return Fault("too_short", f"no sound {part}: {ends}"), length
    samples = length.count
    if need.sample_rate:
        samples = samples * need.sample_rate // facts.rate
    if samples < need.window:
        reason = f"{samples} samples {part}; a spectrogram needs {need.window}"
        return Fault("too_short", reason), length
    peak = facts.peaks.get(span, math.inf)  # none if quick
    if span in facts.peaks and not math.isfinite(peak):
        return Fault("unreadable", f"NaN or infinity {part}"), length
    if peak < need.silence:
        decibels = f"{20 * math.log10(peak):.0f} dB" if peak else "digital silence"
        return Fault("silent", f"nothing louder than {decibels} {part}"), length
    return None, length


def _sound_ends(clip: Clip, lengths: Mapping[str, _Length]) -> bool:
    """Whether a sampled clip may begin after the end of the sound that goes with it."""
    modalities = list(clip.needs)
    for modality, needs in clip.needs.items():
        before = modalities[: modalities.index(modality)]
        for need in needs:
            if need.span != "frames" or modality not in lengths:
                continue
            other = next(
                (m for m in need.span_from if m in before and m in lengths), None
            )
            if other is None:
                continue
            frames, fps = lengths[other]
            fps = need.span_fps or fps
            start, _ = clip.segment(other)
            for sampler in clip.needs[other]:
                if sampler.clip_len and fps:
                    seconds = (start + sampler.latest(frames)) / fps
                    if lengths[modality].seconds <= seconds:
                        return True
    return False


# --------------------------------------------------------------------------------
# Report


class Report:
    """What was found in all clips of a config.

    Args:
        verdicts: One for each clip.
        files: Number of files that were read.
        allow: Kinds that do not count as failure.
    """

    def __init__(
        self, verdicts: Sequence[Verdict], files: int, allow: Iterable[str] = ()
    ) -> None:
        self.verdicts, self.files, self.allow = verdicts, files, frozenset(allow)
        self.problems = [
            (verdict.clip, finding)
            for verdict in verdicts
            for finding in verdict.problems
        ]

    @property
    def failures(self) -> int:
        """Problems of kinds that are not allowed."""
        return sum(finding.kind not in self.allow for _, finding in self.problems)

    def write_csv(self, path: str) -> None:
        """Writes a line for each problem and each absent modality."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for verdict in self.verdicts:
                clip = verdict.clip
                found = [(f, f.reason) for f in verdict.problems]
                found += [(f, f"{f.reason} ({_ADMITTED})") for f in verdict.admitted]
                for finding, reason in found:
                    writer.writerow(
                        [
                            *(clip.domain, clip.label, clip.row["sample_id"]),
                            *(finding.modality, finding.kind, finding.file, reason),
                        ]
                    )

    def print(self, console: Console, csv_file: str | None = None) -> None:
        """Prints the tables, the notes and the first problems."""
        groups, labels = defaultdict(list), defaultdict(list)
        for verdict in self.verdicts:
            groups[verdict.clip.group].append(verdict)
            labels[verdict.clip.label].append(verdict)
        classes = {(label, str(len(v))): v for label, v in sorted(labels.items())}
        tables = {
            f"{len(self.verdicts)} clips, {self.files} files": self._overview(groups)
        }
        if self.problems:
            counts = self._counts(["domain", "role"], groups)
            tables["clips with a problem, by domain"] = counts
        title = "clips with a problem, by class" if self.problems else "clips by class"
        tables[title] = self._counts(["class", "clips"], classes)
        for title, table in tables.items():  # a table would wrap its own title
            console.print(title)
            console.print(table)
        for line in (*self._absent(), *self._notes(), *self._first(csv_file)):
            console.print(line, soft_wrap=True)

    @staticmethod
    def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        for name in names:
            table.add_column(name, overflow="fold")
        for name in numbers:
            table.add_column(name, justify="right", no_wrap=True)
        return table

    def _overview(self, groups: Mapping[tuple, Sequence[Verdict]]) -> Table:
        """Rows of every split, different clips, and how long these are."""
        table = self._table(
            ["domain", "role"],
            [*(f"N {split}" for split in SPLITS), "clips", "median s", "min s"],
        )
        for group, verdicts in groups.items():
            seconds = [v.seconds for v in verdicts if v.seconds is not None]
            table.add_row(
                *group,
                *(str(sum(v.clip.uses[split] for v in verdicts)) for split in SPLITS),
                str(len(verdicts)),
                f"{statistics.median(seconds):.2f}" if seconds else "-",
                f"{min(seconds):.2f}" if seconds else "-",
            )
        return table

    def _counts(
        self, names: Sequence[str], groups: Mapping[tuple, Sequence[Verdict]]
    ) -> Table:
        """Clips with a problem: a row for each group and modality that has any."""
        there = {finding.kind for _, finding in self.problems}
        kinds = [kind for kind in KINDS if kind in there]
        table = self._table([*names, "modality"] if kinds else names, kinds)
        for group, verdicts in groups.items():
            counts = Counter(
                key
                for verdict in verdicts
                for key in {(f.modality, f.kind) for f in verdict.problems}
            )
            cells = list(group)
            for modality in dict.fromkeys(m for v in verdicts for m in v.clip.needs):
                numbers = [counts[modality, kind] for kind in kinds]
                if any(numbers):
                    table.add_row(*cells, modality, *map(str, numbers))
                    cells = [""] * len(cells)
            if not counts:
                table.add_row(*cells)
        return table

    def _absent(self) -> Iterator[str]:
        counts = Counter(
            (verdict.clip.domain, modality)
            for verdict in self.verdicts
            for modality in {finding.modality for finding in verdict.admitted}
        )
        if counts:
            yield f"{_ADMITTED}:"
        for (domain, modality), count in counts.items():
            yield f"  {domain}: {modality} of {count} clips"

    def _notes(self) -> Iterator[str]:
        repeats = Counter(key for verdict in self.verdicts for key in verdict.repeats)
        for (modality, window), count in sorted(repeats.items()):
            yield (
                f"{modality}: {count} clips are shorter than the sampled window of "
                f"{window} frames and repeat"
            )
        ends = sum(verdict.sound_ends for verdict in self.verdicts)
        if ends:
            yield (
                f"{ends} clips: the sampled window may begin after the sound has "
                "ended; it hears silence then"
            )

    def _first(self, csv_file: str | None) -> Iterator[str]:
        """The first problems, one line for a file that many clips share."""
        if not self.problems:
            yield "no problem found"
            return
        lines = Counter((f.kind, f.file, f.reason) for _, f in self.problems)
        counting = [key for key in lines if key[0] not in self.allow]
        allowed = [key for key in lines if key[0] in self.allow]
        count = len(self.problems)
        yield f"{count} problem{'s' * (count > 1)}" + (
            f", {count - self.failures} of them allowed:" if allowed else ":"
        )
        for kind, file, reason in (counting + allowed)[:SHOWN]:
            clips = lines[kind, file, reason]
            shared = f" ({clips} clips)" if clips > 1 else ""
            yield f"  {kind:<10} {file or '-'}: {reason}{shared}"
        if len(lines) > SHOWN:
            where = f"in {csv_file}" if csv_file else "(--csv FILE lists all)"
            yield f"  and {len(lines) - SHOWN} more {where}"


def _progress(total: int) -> Progress:
    console = Console(stderr=True)
    bar = Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        # A refresh thread must not hold the console's lock while workers fork.
        auto_refresh=False,
    )
    bar.add_task("files", total=total)
    return bar


def check(
    cfg: Config,
    workers: int | None = None,
    quick: bool = False,
    allow: Iterable[str] = (),
    csv_file: str | None = None,
) -> int:
    """Checks all files of a config's datasets and prints a report.

    Args:
        cfg: The config.
        workers: Processes that read; None: one for each core.
        quick: Existence, headers and indices only, nothing is decoded.
        allow: Kinds (of :data:`KINDS`) that are reported but are no failure.
        csv_file: Where to list all problems, if anywhere.

    Returns:
        int: 1 if there is a problem of a kind that is not allowed, else 0; 130 after an
        interrupt.

    Raises:
        UsageError: If a dataset cannot be built, ``workers`` is no positive number or
            the CSV file cannot be written.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise UsageError(f"--workers must be 1 or more, got {workers}")
    clips = collect(cfg)
    if csv_file is not None:
        try:  # not only after an hour of reading
            os.makedirs(os.path.dirname(os.path.abspath(csv_file)), exist_ok=True)
            open(csv_file, "a").close()
        except OSError as error:
            raise UsageError(f"--csv: {error}") from error
    jobs = plan(clips)
    total, done, drawn = sum(job.files for job in jobs), 0, 0.0
    try:
        with _progress(total) as bar:

            def advance(files: int) -> None:
                nonlocal done, drawn
                done += files
                refresh = time.monotonic() > drawn + 0.1
                drawn = time.monotonic() if refresh else drawn
                bar.update(bar.task_ids[0], completed=done, refresh=refresh)

            facts = inspect_all(jobs, workers, quick, advance)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"interrupted after {done} of {total} files; nothing is reported"
        )
        return 130
    report = Report([judge(clip, facts) for clip in clips], total, allow)
    if csv_file is not None:
        report.write_csv(csv_file)
    # A log file has no width that tables must be squeezed into.
    width = None if Console().is_terminal else 120
    report.print(Console(width=width, markup=False, highlight=False), csv_file)
    return int(report.failures > 0)
