"""Many files: workers, progress, the report, and the options that the tools share."""

import argparse
import pickle
import shutil
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .common import (
    DamagedArchiveError,
    DownloadError,
    Monitor,
    Options,
    StoppedError,
)
from .files import Download, alone, fetch_unlocked, remote_size, unwritten


@dataclass(frozen=True)
class Job:
    """A file, and what is done with it.

    Attributes:
        download: The file.
        finish: Called with the worker's monitor when the file is there; returns a
            remark for the report, or ``''``.
        done: Says, without the network, that there is nothing left to do: a remark
            or ``''`` if so, else ``None``.
        archive: If ``finish`` unpacks the file, into which folder. The file is then
            deleted, unless :attr:`Options.keep_archives`.
    """

    download: Download
    finish: Callable[[Monitor], str] | None = None
    done: Callable[[], str | None] = lambda: None
    archive: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: Of the file.
        state: ``'fetched'``, ``'there'``, ``'failed'`` or ``'stopped'``.
        text: The reason, or a remark.
        received: Bytes that came over the network.
    """

    name: str
    state: str
    text: str = ""
    received: int = 0

    @property
    def failed(self) -> bool:
        """Whether something is left to do."""
        return self.state in ("failed", "stopped")


def _carry_out(job: Job, options: Options, monitor: Monitor) -> tuple[str, str]:
    """Does a job; returns its state and a remark."""
    if (remark := job.done()) is not None:
        return "there", remark
    download, fresh, remark = job.download, False, ""
    try:
        with alone(download.path):
            # Another process may have done it meanwhile.
            if (remark := job.done()) is not None:
                return "there", remark
            fresh = fetch_unlocked(download, options, monitor)
            if job.finish:
                remark, fresh = job.finish(monitor), True
            if job.archive and not options.keep_archives:
                download.path.unlink()
    except DamagedArchiveError as error:
        if fresh:
            # Else the next run would stumble over it again.
            download.path.unlink(missing_ok=True)
        help_ = "It was deleted: run it again" if fresh else "Delete it, run it again"
        return "failed", f"{error}. {help_}"
    except DownloadError as error:
        return "failed", str(error)
    except OSError as error:
        return "failed", unwritten(Path(error.filename or download.path), error)
    return ("fetched" if fresh else "there"), remark


class _Crew:
    """Threads that carry out jobs, and their monitors."""

    def __init__(self, jobs: Sequence[Job], options: Options) -> None:
        self.jobs, self.options = jobs, options
        self.outcomes: dict[int, Outcome] = {}
        self.active: list[Monitor] = []
        self._queue = deque(enumerate(jobs))
        self._stop = threading.Event()
        # Daemons: one that waits for the network must not keep the program.
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(min(options.workers, len(jobs)))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits for the end; whether it has come."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:  # started
                thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stop.set()
        self.wait(1.0)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                index, job = self._queue.popleft()
            except IndexError:
                return
            name = job.download.name
            monitor = Monitor(name, self._stop, self.active)
            self.active.append(monitor)
            try:
                state, text = _carry_out(job, self.options, monitor)
            except StoppedError:
                return
            except Exception as error:
                state, text = "failed", f"{type(error).__name__}: {error}"
            finally:
                self.active.remove(monitor)
            self.outcomes[index] = Outcome(name, state, text, monitor.received)

    def result(self) -> list[Outcome]:
        """In the order of the jobs."""
        return [
            self.outcomes.get(i) or Outcome(job.download.name, "stopped")
            for i, job in enumerate(self.jobs)
        ]


class _Display:
    """Bars on a terminal, elsewhere a line per file and one a minute."""

    def __init__(self, crew: _Crew, console: Console) -> None:
        self.crew, self.console = crew, console
        self._bars: dict[Monitor, int] = {}
        self._shown, self._last = 0, time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        sizes = [job.download.size for job in crew.jobs]
        self._sizes = None if None in sizes else sizes
        self._all = self._progress.add_task("", total=self._sizes and sum(self._sizes))

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Shows what has happened since."""
        finished, active = dict(self.crew.outcomes), list(self.crew.active)
        outcomes = list(finished.values())
        files = f"{len(outcomes)}/{len(self.crew.jobs)} files"
        count = sum(o.received for o in outcomes) + sum(m.received for m in active)
        for number, outcome in enumerate(outcomes[self._shown :], self._shown + 1):
            if outcome.failed or not self.console.is_terminal:
                text = f"{outcome.name}: {outcome.state}"
                if outcome.text:
                    text += f" ({outcome.text})"
                self._line(f"[{number}/{len(self.crew.jobs)}] {text}")
        self._shown = len(outcomes)
        if not self.console.is_terminal:
            if time.monotonic() - self._last >= 60:
                self._last = time.monotonic()
                self._line(f"{files}, {decimal(count)}")
            return
        if self._sizes:
            count = sum(self._sizes[i] for i in finished) + sum(m.best for m in active)
        self._progress.update(self._all, description=files, completed=count)
        for monitor in [m for m in self._bars if m not in active]:
            self._progress.remove_task(self._bars.pop(monitor))
        for monitor in active:
            if monitor not in self._bars:
                self._bars[monitor] = self._progress.add_task("")
            self._progress.update(
                self._bars[monitor],
                description=escape(f"{monitor.phase} {monitor.name}"),
                total=monitor.size,
                completed=monitor.position,
            )

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def needed(jobs: Iterable[Job], options: Options) -> int:
    """Bytes that jobs will take at their worst, as far as their sizes are published.

    What comes out of an archive is taken to be as large as the archive: the archives
    here hold pictures, videos and sounds.
    """
    plain, archives, unpacked = 0, [], 0
    for job in jobs:
        path, size = job.download.path, job.download.size or 0
        paths = (path, path.with_name(f"{path.name}.part"))
        have = max(p.stat().st_size if p.is_file() else 0 for p in paths)
        rest = max(size - have, 0)
        if job.archive:
            archives.append(rest)
            unpacked += size
        else:
            plain += rest
    if not options.keep_archives:
        archives = sorted(archives, reverse=True)[: options.workers]
    return plain + sum(archives) + unpacked


def run(
    jobs: Sequence[Job], options: Options, console: Console | None = None
) -> list[Outcome]:
    """Carries out jobs, several at a time.

    Ctrl-C stops it within about a second; what is unfinished is named as
    ``'stopped'``, and the next run goes on from there.

    Args:
        jobs: No two for the same path.
        options: See there.
        console: Where progress goes; standard error by default.

    Returns:
        list[Outcome]: In the order of the jobs.

    Raises:
        ValueError: If two jobs write one path.
        DownloadError: If the sizes are known and the disk is too small.
    """
    paths = Counter(job.download.path for job in jobs)
    path, count = max(paths.items(), key=lambda item: item[1], default=(None, 0))
    if count > 1:
        raise ValueError(f"{count} downloads would write {path}")
    todo = [job for job in jobs if job.done() is None]
    if todo:
        folder = todo[0].download.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        need, free = needed(todo, options), shutil.disk_usage(folder).free
        if need > free:
            raise DownloadError(
                f"about {decimal(need)} are needed, but {folder} has {decimal(free)} "
                "free. Nothing was started; make room"
            )
    crew = _Crew(jobs, options)
    console = console or Console(stderr=True, quiet=options.quiet)
    try:
        with _Display(crew, console) as display:
            crew.start()
            while not crew.wait(0.1):
                display.update()
            display.update()
    except KeyboardInterrupt:
        crew.stop()
    return crew.result()


def run_and_report(jobs: Sequence[Job], options: Options) -> tuple[int, list[Outcome]]:
    """:func:`run`, then :func:`report`; its code, and what became of the jobs."""
    start = time.monotonic()
    outcomes = run(jobs, options)
    return report(outcomes, time.monotonic() - start), outcomes


def report(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Prints what became of a run; the program's exit code, 0 or 1.

    Every failure is named, with its reason, on standard error.

    Args:
        outcomes: Of :func:`run`.
        seconds: How long it took.
    """
    states = Counter(outcome.state for outcome in outcomes)
    size = decimal(sum(outcome.received for outcome in outcomes))
    words = dict(there="there already", failed="failed", stopped="stopped")
    text = "".join(f", {states[s]} {w}" for s, w in words.items() if states[s])
    fetched = f"{states['fetched']} fetched ({size} in {seconds:.0f} s)"
    print(f"{len(outcomes)} files: {fetched}{text}")
    for outcome in outcomes:
        if outcome.state == "failed":
            print(f"failed: {outcome.name}: {outcome.text}", file=sys.stderr)
        elif outcome.text:
            print(f"{outcome.name}: {outcome.text}")
    if stopped := [o.name for o in outcomes if o.state == "stopped"]:
        more = f" and {len(stopped) - 5} more" if len(stopped) > 5 else ""
        print(
            f"stopped: {', '.join(stopped[:5])}{more}; run it again to go on",
            file=sys.stderr,
        )
    return int(any(outcome.failed for outcome in outcomes))


def dry_run(jobs: Sequence[Job], options: Options) -> int:
    """Prints every URL with the path that it would go to; writes nothing.

    Returns:
        int: 1 if sizes were asked for and some file is not to be had, else 0.
    """
    faults, known, unknown, total = [], 0, 0, 0
    for job in jobs:
        download, size = job.download, job.download.size
        if job.done() is not None:
            print(f"{download.urls[0]} -> {download.path} (done)")
            continue
        if options.sizes:
            try:
                size = remote_size(download, options)
            except DownloadError as error:
                faults.append(f"failed: {download.name}: {error}")
        known, unknown = known + (size is not None), unknown + (size is None)
        total += size or 0
        text = "" if size is None else f" ({decimal(size)})"
        into = f" -> {job.archive}" if job.archive else ""
        print(f"{' or '.join(download.urls)} -> {download.path}{into}{text}")
    more = f", {unknown} of unknown size" if unknown else ""
    print(f"dry run: {known + unknown} files, {decimal(total)}{more}; nothing written")
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def add_options(parser: argparse.ArgumentParser, archives: bool = True) -> None:
    """Adds the fields of :class:`Options` to a tool's command line.

    Args:
        parser: The tool's.
        archives: Whether there are any to keep.
    """
    group = parser.add_argument_group("download")
    group.add_argument("--workers", type=int, metavar="N")
    group.add_argument(
        "--attempts", type=int, metavar="N", help="tries in a row that may fail"
    )
    group.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="for connecting, and without data before a try is given up",
    )
    flags = dict(
        dry_run="print URL -> path; write nothing",
        sizes="with --dry-run: ask for sizes (HEAD)",
        quiet="no progress",
    )
    if archives:
        flags["keep_archives"] = "keep archives after unpacking"
    for name, text in flags.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, action="store_true", help=text)
    parser.set_defaults(**asdict(Options()))


def options_of(args: argparse.Namespace) -> Options:
    """The options that :func:`add_options` added, from the parsed arguments.

    Raises:
        ValueError: If a number is out of range, or an option has no effect.
    """
    return Options(**{f.name: getattr(args, f.name) for f in fields(Options)})


def exit_code(command: Callable[[], int]) -> int:
    """Runs a tool: its code, 1 if something could not be had, 2 if it was misused."""
    try:
        return command()
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DownloadError as error:
        print(f"failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
    return 1
