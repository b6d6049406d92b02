"""What extracting flow and extracting sound share.

An :class:`Extraction` says which files a video becomes and writes them. The rest is
here: find the videos, make what is not there yet under temporary names that are renamed
once all is written, in processes, with progress, summary and exit code. A run that was
killed at any moment is continued by the same command.
"""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, TextIO

import av
from rich.console import Console
from rich.table import Table

from .. import progress
from ..cores import usable_cores
from ..errors import Terminated, UsageError, sigterm_raises
from ..parallel import run_parallel

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Names that end so, in either case, are videos."""

MADE, THERE, NOTHING, FAILED = "made", "already there", "nothing to write", "failed"

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C; after SIGTERM it is 128 + SIGTERM."""


_NEW, _OLD = ".part", ".old.part"  # outputs being written, and being replaced


class MediaError(RuntimeError):
    """A video that cannot be processed; the message says why."""


class NothingToWrite(Exception):  # noqa: N818  it is not an error
    """The video is fine but holds nothing of what is extracted."""


class Extraction:
    """What is made of a video: the base of :class:`FlowExtraction` and its like.

    Subclasses are dataclasses whose fields are the settings. They are sent to worker
    processes.
    """

    name: ClassVar[str]
    """One word. ``OUT/<name>_settings.json`` records the settings."""

    nothing: ClassVar[str] = ""
    """Column of the summary for videos that hold nothing to extract, if any can."""

    unit: ClassVar[str] = "videos"
    """What progress is counted in. One that is not videos is counted by :meth:`write`,
    with :func:`.progress.count`, and foreseen by :meth:`size`."""

    def size(self, source: Path) -> int:
        """How many units a video has, as far as its header knows."""
        return 1

    def outputs(self, stem: Path) -> tuple[Path, ...]:
        """The files or folders that a video becomes, from its place without suffix."""
        raise NotImplementedError

    def write(self, source: Path, targets: tuple[Path, ...]) -> None:
        """Makes the outputs of one video.

        Args:
            source: The video.
            targets: Where to write, in the order of :meth:`outputs`; names of a moment.

        Raises:
            MediaError: If the video is unusable.
            NothingToWrite: If there is nothing in it to extract.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raises :class:`UsageError` if these settings cannot work."""

    def prepare(self) -> None:
        """What is done once, before the first video."""

    def default_workers(self) -> int:
        """Processes to use where the caller does not say: the usable cores."""
        return usable_cores()

    def settings(self) -> dict:
        """The settings that decide what is in the outputs, as JSON knows them."""
        return dataclasses.asdict(self)


class Conversion(NamedTuple):
    """One video and what becomes of it."""

    source: Path
    outputs: tuple[Path, ...]

    @property
    def done(self) -> bool:
        """Whether all outputs exist: they get their names only when complete."""
        return all(output.exists() for output in self.outputs)

    def beside(self, ending: str) -> tuple[Path, ...]:
        """Hidden names of a moment: what a killed run left is overwritten."""
        return tuple(path.with_name(f".{path.name}{ending}") for path in self.outputs)

    def tidy(self) -> None:
        """Removes whatever has such a name."""
        for path in (*self.beside(_NEW), *self.beside(_OLD)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


class Result(NamedTuple):
    """How a conversion ended: ``status`` is one of the four words of this module."""

    conversion: Conversion
    status: str
    reason: str = ""
    counted: int = 0  # units of progress


# --------------------------------------------------------------------------------
# Planning


def find_videos(videos: Path) -> tuple[Path, list[Path]]:
    """The folder that relative paths start from, and the videos in it, sorted.

    Links are followed, hidden files and folders left out. One file may have any suffix.

    Raises:
        UsageError: If there is nothing.
    """
    if videos.is_file():
        return videos.parent, [videos]
    if not videos.is_dir():
        raise UsageError(f"there is no file or folder {show(videos)}")
    found, visited = [], set()
    for folder, subfolders, files in os.walk(videos, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link in a circle
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in files
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise UsageError(
            f"there is no video under {show(videos)}; looked for "
            f"{', '.join(VIDEO_SUFFIXES)}"
        )
    return videos, sorted(found)


def plan(videos: Path, out: Path, extraction: Extraction) -> list[Conversion]:
    """What is made of each video; outputs keep the video's relative path.

    Videos that are themselves outputs (flow written beside its source) are left out.

    Raises:
        UsageError: If there are no videos, or two of them would write one output.
    """
    root, sources = find_videos(videos.absolute())
    # As the datasets cut a suffix off; Path.with_suffix differs for "a..mp4".
    stems = [os.path.splitext(source.relative_to(root))[0] for source in sources]
    plans = [
        Conversion(source, extraction.outputs(out.absolute() / stem))
        for source, stem in zip(sources, stems, strict=True)
    ]
    made = {os.path.realpath(output) for each in plans for output in each.outputs}
    plans = [each for each in plans if os.path.realpath(each.source) not in made]
    owners: dict[Path, Conversion] = {}
    for each in plans:
        for output in each.outputs:
            owners.setdefault(output, each)
    clashes = []
    for each in plans:
        # Frames of a/u.mp4 would lie in the folder a/u of a.mp4.
        places = [p for output in each.outputs for p in (output, *output.parents)]
        others = (owners[p] for p in places if owners.get(p, each) is not each)
        if (other := next(others, None)) is not None:
            pair = [show(c.source.relative_to(root)) for c in (other, each)]
            clashes.append(" and ".join(pair))
    if clashes:
        more = f" and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        raise UsageError(
            f"{', '.join(clashes[:5])}{more} would be written to the same place; "
            "rename one of each, or process them into different folders"
        )
    return plans


def show(path: Path) -> str:
    """A path as text that every terminal can print."""
    return str(path).encode(errors="backslashreplace").decode()


# --------------------------------------------------------------------------------
# One video


def make_outputs(extraction: Extraction, conversion: Conversion) -> None:
    """Converts, so that at no moment all outputs exist unless all are complete.

    Outputs of an earlier run are replaced; they stay if :meth:`Extraction.write` fails.
    """
    source, outputs = conversion
    try:
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        conversion.tidy()
        extraction.write(source, conversion.beside(_NEW))
        for output, old in zip(outputs, conversion.beside(_OLD), strict=True):
            if output.exists():
                os.replace(output, old)
        for new, output in zip(conversion.beside(_NEW), outputs, strict=True):
            os.replace(new, output)
    finally:
        conversion.tidy()


@dataclass(frozen=True)
class _Converter:
    """What worker processes do."""

    extraction: Extraction

    def __call__(self, conversion: Conversion) -> Result:
        status, reason, before = MADE, "", progress.counted()
        try:
            make_outputs(self.extraction, conversion)
        except NothingToWrite as nothing:
            status, reason = NOTHING, str(nothing)
        except MediaError as error:
            status, reason = FAILED, str(error)
        except av.FFmpegError as error:
            status, reason = FAILED, f"it cannot be decoded: {error.strerror}"
        except Exception as error:  # any fault of one video must not stop the others
            lines = str(error).strip().splitlines() or [""]
            status, reason = FAILED, f"{type(error).__name__}: {lines[0]}"
        return Result(conversion, status, reason, progress.counted() - before)


# --------------------------------------------------------------------------------
# A whole run


def extract(
    videos: Path | str,
    out: Path | str,
    extraction: Extraction,
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> int:
    """Extracts from all videos, with a progress bar and a summary.

    Args:
        videos: A folder, searched recursively, or a file.
        out: Folder for the outputs. It also gets ``<name>_settings.json``.
        extraction: What to make.
        workers: Processes. Defaults to :meth:`Extraction.default_workers`.
        dry_run: List what would be done and write nothing.
        overwrite: Make also what exists.

    Returns:
        The exit code: 0, 1 if a video failed, :data:`INTERRUPTED`.

    Raises:
        UsageError: Before any work, if the request cannot work.
    """
    videos, out = Path(videos), Path(out).absolute()
    extraction.check()
    if workers is None:
        workers = extraction.default_workers()
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, needs at least 1")
    plans = plan(videos, out, extraction)
    todo = [each for each in plans if overwrite or not each.done]
    results = [Result(each, THERE) for each in plans if each not in {*todo}]
    settings_file = out / f"{extraction.name}_settings.json"
    if dry_run:
        if not overwrite:
            _check_settings(settings_file, plans, extraction)
        for source, outputs in todo:
            places = ", ".join(show(path.relative_to(out)) for path in outputs)
            print(f"{show(source)} -> {places}")
        counts = {"to make": len(todo), THERE: len(results)}
        _print_counts(f"{show(out)}: dry run, nothing written", counts)
        return 0

    interrupted = 0
    with claim(settings_file, extraction.name) as file, sigterm_raises():
        if not overwrite:
            _check_settings(settings_file, plans, extraction)
        try:
            if todo:
                extraction.prepare()
            file.truncate(0)
            file.write(json.dumps(extraction.settings(), indent=2) + "\n")
            file.flush()
            for result in _convert(extraction, todo, workers):
                results.append(result)  # one by one: an interruption keeps them
        except KeyboardInterrupt:
            interrupted = INTERRUPTED
        except Terminated:
            interrupted = 128 + signal.SIGTERM
    _report(out, extraction, results, not_reached=len(plans) - len(results))
    if interrupted:
        print("Interrupted. The same command goes on from here.")
        return interrupted
    return int(any(result.status == FAILED for result in results))


def _convert(
    extraction: Extraction, todo: Sequence[Conversion], workers: int
) -> Iterator[Result]:
    """Converts with progress, and yields how each ended."""
    workers = max(1, min(workers, len(todo)))
    sizes = {each: extraction.size(each.source) for each in todo}
    title, total = f"extracting {extraction.name}", sum(sizes.values())
    with progress.Meter(title, extraction.unit, total, workers) as meter:
        running = run_parallel(
            _Converter(extraction),
            todo,
            workers,
            sender=meter.sender,
            abandoned=Conversion.tidy,
        )
        with closing(running):
            for conversion, result, error in running:
                result = result or Result(conversion, FAILED, str(error))
                # A header may be wrong, and what failed is over too.
                meter.add(sizes[conversion] - result.counted)
                yield result


@contextmanager
def claim(path: Path, name: str) -> Iterator[TextIO]:
    """Opens the settings file and keeps other runs out of the folder.

    It is locked while the run lasts: temporary names are the same in every run.
    """
    folder = show(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run is extracting {name} into {folder}; wait for it, or "
                "name another folder"
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield file


def _check_settings(
    path: Path, plans: Iterable[Conversion], extraction: Extraction
) -> None:
    """Refuses a folder that holds outputs of other settings."""
    if not path.is_file():
        return
    # Sources and torn pieces, or settings alone, are not outputs.
    others = {path, *(each.source for each in plans)}
    outputs = (
        each
        for each in path.parent.rglob("*")
        if each not in others and not each.is_dir()
        if not any(p.endswith(".part") for p in each.relative_to(path.parent).parts)
    )
    try:
        there = json.loads(path.read_text() or "null")
    except ValueError:
        there = {}
    here = extraction.settings()
    if there is None or there == here or not any(outputs):
        return
    there = there if isinstance(there, dict) else {}
    differences = ", ".join(
        f"{key} {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    )
    raise UsageError(
        f"{show(path)} says that this folder was filled with other settings "
        f"({differences}); name another folder, or replace all with --overwrite"
    )


def _print_counts(title: str, counts: dict[str, int]) -> None:
    print(title)
    table = Table()
    for column in ("videos", *counts):
        table.add_column(column, justify="right")
    table.add_row(str(sum(counts.values())), *map(str, counts.values()))
    Console().print(table)


def _report(
    out: Path, extraction: Extraction, results: list[Result], not_reached: int
) -> None:
    words = {MADE: MADE, THERE: THERE, NOTHING: extraction.nothing, FAILED: FAILED}
    found = Counter(words[result.status] for result in results)
    counts = {word: found[word] for word in words.values() if word}
    if not_reached:
        counts["not reached"] = not_reached
    _print_counts(show(out), counts)
    for status in (NOTHING, FAILED):
        for conversion, own, reason, _ in sorted(results):
            if own == status:
                told = (words[status], show(conversion.source), reason)
                print(": ".join(filter(None, told)))
    if counts[FAILED]:
        print(
            "Fetch the failed videos again, or re-encode them with "
            "`ffmpeg -i FILE -c:v libx264 -pix_fmt yuv420p NEW.mp4`."
        )


# --------------------------------------------------------------------------------
# Reading


def read_packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The packets of all streams; choose by ``packet.stream``.

    (``packet.stream_index`` is 0 in those that flush a decoder.)

    A file that was cut off often decodes without an error up to its end. So the end
    is compared with the length that the header promises; a tenth, at most a second, may
    be missing, since headers round and streams end at different times.

    Raises:
        MediaError: If the file is cut off.
    """
    end = 0.0
    for packet in container.demux():
        if packet.is_corrupt:
            raise MediaError(f"it is cut off or damaged after {end:.1f} s")
        if packet.pts is not None:
            end = max(
                end, float((packet.pts + (packet.duration or 0)) * packet.time_base)
            )
        yield packet
    promised = (container.duration or 0) / av.time_base
    if promised - end > min(1.0, promised / 10):
        raise MediaError(
            f"it is cut off: its header promises {promised:.1f} s, it holds {end:.1f} s"
        )
