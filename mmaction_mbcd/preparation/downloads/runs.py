"""Many files at a time: report, and the tools' options."""

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars, logging, tqdm
from rich.filesize import decimal

from mmaction_mbcd.parallel import run_parallel

from .files import DamagedArchiveError, DownloadError, File, fetch, locate


@dataclass(frozen=True)
class Options:
    """How files are fetched.

    Attributes:
        workers: Files at the same time.
        keep_archives: Do not delete an archive after unpacking it.
        quiet: Show no progress.
        dry_run: Print what would be done, with sizes, and write nothing.
    """

    workers: int = 4
    keep_archives: bool = False
    quiet: bool = False
    dry_run: bool = False


def add_options(parser: argparse.ArgumentParser, archives: bool = True) -> None:
    """Adds the fields of :class:`Options` to a tool's command line.

    Args:
        parser: The tool's.
        archives: Whether there are any to keep.
    """
    group = parser.add_argument_group("download")
    group.add_argument("--workers", type=int, metavar="N", help="files at a time")
    flags = dict(dry_run="print URL -> path, with sizes (HEAD); write nothing")
    flags["quiet"] = "no progress"
    if archives:
        flags["keep_archives"] = "keep archives after unpacking"
    for name, text in flags.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, action="store_true", help=text)
    parser.set_defaults(**asdict(Options()))


def options_of(args: argparse.Namespace) -> Options:
    """The options that :func:`add_options` added, from the parsed arguments."""
    if args.workers < 1:
        raise ValueError(f"workers must be at least 1, got {args.workers}")
    return Options(**{f.name: getattr(args, f.name) for f in fields(Options)})


def reason(error: Exception) -> str:
    """An error in one line."""
    kind = "" if isinstance(error, DownloadError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _carry_out(options: Options, file: File) -> tuple[str, str]:
    """What became of a file, ``'fetched'`` or ``'there'``, and a remark."""
    if (remark := file.done()) is not None:
        return "there", remark
    fresh = fetch(file)
    try:
        remark = file.finish()
    except DamagedArchiveError as error:
        if fresh:  # else the next run would stumble over it again
            file.path.unlink()
        advice = "It was deleted: run it again" if fresh else "Delete it, run it again"
        raise DownloadError(f"{error}. {advice}") from None
    if file.folder and not options.keep_archives:
        file.path.unlink()
    return ("fetched" if fresh or file.folder else "there"), remark


def needed(files: Sequence[File], options: Options) -> int:
    """Bytes that files will take at their worst, as far as their sizes are published.

    What comes out of an archive is taken to be as large as the archive: the archives
    are of pictures, videos and sounds.
    """
    archives = sorted((f.rest() for f in files if f.folder), reverse=True)
    if not options.keep_archives:
        archives = archives[: options.workers]
    unpacked = sum(f.size or 0 for f in files if f.folder)
    return sum(f.rest() for f in files if not f.folder) + sum(archives) + unpacked


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuses a second run in a folder, and ends the process on Ctrl-C.

    Two runs would write the same parts. Threads that wait for a server cannot be
    ended; after Ctrl-C, as after a kill, what is complete stays and parts go on.
    """

    def stop(*_) -> None:
        os.write(2, b"\nstopped; run it again to go on\n")
        os._exit(1)

    root.mkdir(parents=True, exist_ok=True)
    handle, before = os.open(root, os.O_RDONLY), signal.signal(signal.SIGINT, stop)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another download into {root} is running") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(handle)


def run(root: Path, files: Sequence[File], options: Options) -> int:
    """Fetches files, several at a time, and prints what became of them.

    Every failure is named on standard error, in one line; the others are fetched.

    Args:
        root: The folder that all of it goes below.
        files: The files.
        options: How they are fetched; with ``dry_run`` they are only printed.

    Returns:
        int: The exit code: 0, or 1 if a file failed.

    Raises:
        ValueError: If two files have one path.
        DownloadError: If the disk is too small, or another run is going on.
    """
    for path, count in Counter(file.path for file in files).items():
        if count > 1:
            raise ValueError(f"{count} downloads would write {path}")
    logging.set_verbosity_error()  # no word of tries that are repeated
    if options.quiet:
        disable_progress_bars()
    todo = [file for file in files if file.done() is None]
    if options.dry_run:
        return _dry_run(todo, options)
    states = Counter()
    with _alone(root):
        need, free = needed(todo, options), shutil.disk_usage(root).free
        if need > free:
            raise DownloadError(
                f"about {decimal(need)} are needed, but {root} has {decimal(free)} "
                "free. Nothing was started; make room"
            )
        work = partial(_carry_out, options)
        for file, value, error in run_parallel(
            work, files, options.workers, threads=True
        ):
            state, remark = value or ("failed", reason(error))
            states[state] += 1
            if error:
                tqdm.write(f"failed: {file.name}: {remark}", file=sys.stderr)
            elif remark or state == "fetched":
                number = f"[{states.total()}/{len(files)}]"
                tqdm.write(f"{number} {file.name}: {state}{remark and f' ({remark})'}")
    words = dict(fetched="fetched", there="there already", failed="failed")
    text = ", ".join(f"{states[s]} {w}" for s, w in words.items() if states[s])
    print(f"{len(files)} files: {text}")
    return int(states["failed"] > 0)


def _dry_run(todo: Sequence[File], options: Options) -> int:
    """Prints every URL with the path that it would go to."""
    work = run_parallel(locate, todo, options.workers, threads=True)
    outcomes = {outcome.item.path: outcome for outcome in work}
    total = 0
    for file in todo:
        _, value, error = outcomes[file.path]
        if error:
            print(f"failed: {file.name}: {reason(error)}", file=sys.stderr)
        url, size, _ = value or (" or ".join(file.urls), None, "")
        total += size or 0
        into = f" -> {file.folder}" if file.folder else ""
        text = "unknown size" if size is None else decimal(size)
        print(f"{url} -> {file.path}{into} ({text})")
    print(f"dry run: {len(todo)} files, {decimal(total)}; nothing written")
    return int(any(outcome.error for outcome in outcomes.values()))


def exit_code(command: Callable[[], int]) -> int:
    """Runs a tool: its code, 1 if something could not be had, 2 if it was misused."""
    try:
        return command()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DownloadError as error:
        print(f"failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
    return 1
