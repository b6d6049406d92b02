"""What extracting flow and extracting sound share.

An :class:`Extraction` says which files a video becomes and writes them. The rest is
here, in the order in which it happens::

    find_videos   the videos of a folder
    plan_jobs     one job per video, and whether two of them are in each other's way
    run_jobs      do them in processes; a failed one does not stop the others
    make_outputs  one job: under temporary names, renamed once all is written
    extract       all of it, with progress, summary and exit code

A run that was killed at any moment is continued by the same command.
"""

import dataclasses
import errno
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar, NamedTuple, TextIO

import av
import cv2
import torch
from rich.console import Console
from rich.table import Table

from .. import progress
from ..errors import UsageError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""Names that end so, in either case, are videos."""

MADE, THERE, NOTHING, FAILED = "made", "already there", "nothing to write", "failed"

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C or SIGTERM."""


class MediaError(RuntimeError):
    """A video that cannot be processed; the message says why."""


class NothingToWrite(Exception):  # noqa: N818  it is no error
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
        """The files or folders that a video becomes.

        Args:
            stem: The video's place below the output folder, without suffix.
        """
        raise NotImplementedError

    def write(self, source: Path, targets: tuple[Path, ...]) -> None:
        """Makes the outputs of one video.

        Args:
            source: The video.
            targets: Where to write, in the order of :meth:`outputs`. The names are
                temporary, so their suffixes tell nothing.

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
        return len(os.sched_getaffinity(0))

    def settings(self) -> dict:
        """The settings that decide what is in the outputs, as JSON knows them."""
        return dataclasses.asdict(self)


class Job(NamedTuple):
    """One video and what becomes of it."""

    source: Path
    outputs: tuple[Path, ...]

    @property
    def done(self) -> bool:
        """Whether all outputs exist: they get their names only when complete."""
        return all(output.exists() for output in self.outputs)


class Result(NamedTuple):
    """How a job ended: ``status`` is one of the four words of this module."""

    job: Job
    status: str
    reason: str = ""
    counted: int = 0  # units of progress


# --------------------------------------------------------------------------------
# Planning


def find_videos(videos: Path) -> tuple[Path, list[Path]]:
    """The videos of a folder, or the one file.

    Links are followed, hidden files and folders left out.

    Args:
        videos: A folder, or a file (whatever its suffix).

    Returns:
        The folder that relative paths start from, and the sorted paths.

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


def plan_jobs(videos: Path, out: Path, extraction: Extraction) -> list[Job]:
    """One job per video; outputs keep the video's relative path.

    Videos that are themselves outputs (flow written beside its source) are left out.

    Raises:
        UsageError: If there are no videos, or two of them would write one output.
    """
    root, sources = find_videos(videos.absolute())
    jobs = [
        Job(source, extraction.outputs(out.absolute() / _stem(source, root)))
        for source in sources
    ]
    made = {os.path.realpath(output) for job in jobs for output in job.outputs}
    jobs = [job for job in jobs if os.path.realpath(job.source) not in made]
    owners: dict[Path, Job] = {}
    clashes = []
    for job in jobs:
        first = next((owners[o] for o in job.outputs if o in owners), None)
        if first is not None:
            clashes.append((first, job))
        owners.update(dict.fromkeys(job.outputs, job))
    for job in jobs:  # frames of a/u.mp4 would lie in the folder a/u of a.mp4
        inside = (p for output in job.outputs for p in output.parents if p in owners)
        if (folder := next(inside, None)) is not None:
            clashes.append((owners[folder], job))
    if clashes:
        pairs = [
            " and ".join(show(job.source.relative_to(root)) for job in pair)
            for pair in clashes[:5]
        ]
        more = f" and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        raise UsageError(
            f"{', '.join(pairs)}{more} would be written to the same place; rename one "
            "of each, or process them into different folders"
        )
    return jobs


def _stem(source: Path, root: Path) -> Path:
    # As the datasets cut a suffix off; Path.with_suffix differs for "a..mp4".
    return Path(os.path.splitext(source.relative_to(root))[0])


def show(path: Path) -> str:
    """A path as text that every terminal can print."""
    return str(path).encode(errors="backslashreplace").decode()


# --------------------------------------------------------------------------------
# One job


def _temporaries(job: Job) -> tuple[Path, ...]:
    # One name per output: what a killed run left is overwritten, not piled up.
    return tuple(path.with_name(f".{path.name}.part") for path in job.outputs)


def _replaced(job: Job) -> tuple[Path, ...]:
    return tuple(path.with_name(f".{path.name}.old.part") for path in job.outputs)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def make_outputs(extraction: Extraction, job: Job) -> None:
    """Does one job, so that at no moment all outputs exist unless all are complete.

    Outputs of an earlier run are replaced.

    Raises:
        Exception: Whatever :meth:`Extraction.write` raises. Outputs of an earlier run
            are kept then, and nothing of this one.
    """
    temporaries, replaced = _temporaries(job), _replaced(job)
    try:
        for path in job.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        _remove((*temporaries, *replaced))
        extraction.write(job.source, temporaries)
        for output, old in zip(job.outputs, replaced, strict=True):
            if output.exists():
                os.replace(output, old)
        for temporary, output in zip(temporaries, job.outputs, strict=True):
            os.replace(temporary, output)
    finally:
        _remove((*temporaries, *replaced))


def _attempt(extraction: Extraction, job: Job) -> Result:
    status, reason, before = MADE, "", progress.counted()
    try:
        make_outputs(extraction, job)
    except NothingToWrite as nothing:
        status, reason = NOTHING, str(nothing)
    except Exception as error:  # any fault of one video must not stop the others
        status, reason = FAILED, _reason(error)
    return Result(job, status, reason, progress.counted() - before)


def _reason(error: Exception) -> str:
    if isinstance(error, MediaError):
        return str(error)
    if isinstance(error, av.FFmpegError):
        return f"it cannot be decoded: {error.strerror}"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


# --------------------------------------------------------------------------------
# Many jobs


def run_jobs(
    extraction: Extraction,
    jobs: Iterable[Job],
    workers: int = 1,
    sender: Connection | None = None,
) -> Generator[Result, None, None]:
    """Does the jobs and yields how each ended, in the order in which they end.

    Close the generator to stop: processes are killed, and what they were writing is
    removed.

    Args:
        extraction: What to make.
        jobs: Of which videos.
        workers: Processes of one thread each. With one, this process does it.
        sender: Where progress is counted, see :class:`.progress.Meter`.
    """
    if workers == 1:
        with _opencv_on_one_thread(), _counting(sender):
            for job in jobs:
                yield _attempt(extraction, job)
        return
    queue, suspects = deque(jobs), []
    while queue:
        suspects += yield from _run_in_pool(extraction, queue, workers, sender)
    # A decoder may crash on a damaged file. Who did it shows when alone.
    for job in suspects:
        if (yield from _run_in_pool(extraction, deque([job]), 1)):
            yield Result(
                job,
                FAILED,
                "the process that worked on it died (a crash of the decoder, or out "
                "of memory: use fewer workers)",
            )


def _run_in_pool(
    extraction: Extraction,
    queue: deque[Job],
    workers: int,
    sender: Connection | None = None,
) -> Generator[Result, None, list[Job]]:
    """Empties the queue; after a crash, returns the jobs that were being done."""
    # Importing this package takes seconds; the server does it once and then forks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, type(extraction).__module__])
    strangers = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (sender,))
    running = {}
    try:
        while queue or running:
            while queue and len(running) < workers:
                future = pool.submit(_attempt, extraction, queue[0])
                running[future] = queue.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                del running[future]
                yield result
    except BrokenProcessPool:
        pass
    finally:
        if running:
            for process in set(multiprocessing.active_children()) - strangers:
                process.kill()
        pool.shutdown(cancel_futures=True)
        for job in running.values():
            _remove((*_temporaries(job), *_replaced(job)))
    return list(running.values())


def _start_worker(sender: Connection | None) -> None:
    progress.count_into(sender)
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def _counting(sender: Connection | None) -> Iterator[None]:
    progress.count_into(sender)
    try:
        yield
    finally:
        progress.count_into(None)


@contextmanager
def _opencv_on_one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


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
    jobs = plan_jobs(videos, out, extraction)
    todo, results = [], []
    for job in jobs:
        if job.done and not overwrite:
            results.append(Result(job, THERE))
        else:
            todo.append(job)
    settings_file = out / f"{extraction.name}_settings.json"
    if dry_run:
        there = settings_file.is_file() and not overwrite
        if there and _holds_outputs(out, jobs, settings_file):
            _compare_settings(settings_file, settings_file.read_text(), extraction)
        for job in todo:
            places = ", ".join(show(path.relative_to(out)) for path in job.outputs)
            print(f"{show(job.source)} -> {places}")
        counts = {"to make": len(todo), THERE: len(results)}
        _print_counts(f"{show(out)}: dry run, nothing written", counts)
        return 0

    interrupted = False
    with _claim(settings_file, extraction.name) as file, _sigterm_as_interrupt():
        if not overwrite and _holds_outputs(out, jobs, settings_file):
            _compare_settings(settings_file, file.read(), extraction)
        try:
            if todo:
                extraction.prepare()
            file.truncate(0)
            file.write(json.dumps(extraction.settings(), indent=2) + "\n")
            file.flush()
            _do(extraction, todo, workers, results)
        except KeyboardInterrupt:
            interrupted = True
    _report(out, extraction, results, not_reached=len(jobs) - len(results))
    if interrupted:
        print("Interrupted. The same command goes on from here.")
        return INTERRUPTED
    return int(any(result.status == FAILED for result in results))


def _do(
    extraction: Extraction, todo: list[Job], workers: int, results: list[Result]
) -> None:
    """Does the jobs and appends their results, so that an interruption keeps them."""
    workers = max(1, min(workers, len(todo)))
    sizes = {job: extraction.size(job.source) for job in todo}
    title, total = f"extracting {extraction.name}", sum(sizes.values())
    with progress.Meter(title, extraction.unit, total, workers) as meter:
        running = run_jobs(extraction, todo, workers, meter.sender)
        with closing(running):
            for result in running:
                results.append(result)
                # A header may be wrong, and what failed is over too.
                meter.add(sizes[result.job] - result.counted)


@contextmanager
def _claim(path: Path, name: str) -> Iterator[TextIO]:
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
        file.seek(0)
        yield file


def _holds_outputs(out: Path, jobs: list[Job], settings_file: Path) -> bool:
    """Whether a folder has more in it than settings, sources and torn pieces."""
    others = {settings_file, *(job.source for job in jobs)}
    return any(
        path not in others and not path.is_dir()
        for path in out.rglob("*")
        if not any(part.endswith(".part") for part in path.relative_to(out).parts)
    )


def _compare_settings(path: Path, text: str, extraction: Extraction) -> None:
    try:
        there = json.loads(text or "null")
    except ValueError:
        there = {}
    here = extraction.settings()
    if there is None or there == here:
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


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends a run as tidily as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_counts(title: str, counts: dict[str, int]) -> None:
    print(title)
    table = Table()
    for column in ("videos", *counts):
        table.add_column(column, justify="right")
    table.add_row(str(sum(counts.values())), *map(str, counts.values()))
    Console().print(table)


def _report(
    out: Path,
    extraction: Extraction,
    results: list[Result],
    not_reached: int,
) -> None:
    words = {MADE: MADE, THERE: THERE, NOTHING: extraction.nothing, FAILED: FAILED}
    counts = {
        word: sum(result.status == status for result in results)
        for status, word in words.items()
        if word
    }
    if not_reached:
        counts["not reached"] = not_reached
    _print_counts(show(out), counts)
    for status in (NOTHING, FAILED):
        chosen = sorted(result for result in results if result.status == status)
        for job, _, reason, _ in chosen:
            print(": ".join(filter(None, (words[status], show(job.source), reason))))
    if counts[FAILED]:
        print(
            "Fetch the failed videos again, or re-encode them with "
            "`ffmpeg -i FILE -c:v libx264 -pix_fmt yuv420p NEW.mp4`."
        )


# --------------------------------------------------------------------------------
# Reading


def read_packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The packets of all streams; choose by ``packet.stream``.

    Packets that flush a decoder, the last of every stream, hold no index of their own:
    ``packet.stream_index`` is 0 there.

    A file that was cut off often decodes without an error up to its end. Here the end
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
