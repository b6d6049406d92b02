"""Many files at a time: report, and the tools' options."""

import argparse
import fcntl
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from huggingface_hub.utils import disable_progress_bars, logging, tqdm
from rich.filesize import decimal

from mmaction_mbcd.parallel import run_parallel

from .files import DownloadError, File, fetch, locate


def add_options(parser: argparse.ArgumentParser, archives: bool = True) -> None:
    """Adds the options that :func:`run` reads; ``archives`` if any could be kept."""
    parser.set_defaults(keep_archives=False)
    add = parser.add_argument_group("download").add_argument
    add("--workers", type=int, default=4, metavar="N", help="files at a time")
    add("--dry-run", action="store_true", help="print URL -> path (size) only")
    add("--quiet", action="store_true", help="no progress")
    if archives:
        add("--keep-archives", action="store_true", help="do not delete unpacked ones")


def reason(error: Exception) -> str:
    """An error in one line."""
    kind = "" if isinstance(error, DownloadError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _carry_out(keep_archives: bool, file: File) -> tuple[str, str | None]:
    """What became of a file, and a remark."""
    if file.done():
        return "there already", None
    fresh = fetch(file)
    remark = file.finish()
    if file.folder and not keep_archives:
        file.path.unlink()  # the archive
    return ("fetched" if fresh or file.folder else "there already"), remark


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuses a second run in a folder: two would write the same parts."""
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"another download into {root} is running") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def run(root: Path, files: Sequence[File], options: argparse.Namespace) -> int:
    """Fetches files, several at a time, and prints what became of them.

    Every failure is named on standard error, in one line; the others are fetched.

    Args:
        root: The folder that all of it goes below.
        files: The files.
        options: Of :func:`add_options`; with ``dry_run`` they are only printed.

    Returns:
        int: The exit code: 0, or 1 if a file failed.

    Raises:
        ValueError: If two files have one path.
        DownloadError: If another run is going on.
    """
    for path, count in Counter(file.path for file in files).items():
        if count > 1:
            raise ValueError(f"{count} downloads would write {path}")
    logging.set_verbosity_error()  # no word of tries that are repeated
    if options.quiet:
        disable_progress_bars()
    if options.dry_run:
        return _dry_run([file for file in files if not file.done()], options.workers)
    states = Counter()
    work = partial(_carry_out, options.keep_archives)
    with _alone(root):
        done = run_parallel(work, files, options.workers, threads=True)
        for file, value, error in done:
            state, remark = value or ("failed", None)
            states[state] += 1
            if error:
                tqdm.write(f"failed: {file.name}: {reason(error)}", file=sys.stderr)
            elif remark or state == "fetched":
                tqdm.write(f"{state}: {file.name}{f' ({remark})' if remark else ''}")
    counts = (f"{states[state]} {state}" for state in sorted(states))
    print(f"{len(files)} files: {', '.join(counts)}")
    return int(states["failed"] > 0)


def _dry_run(todo: Sequence[File], workers: int) -> int:
    """Prints every URL with the path that it would go to."""
    total, code = 0, 0
    for file, value, error in run_parallel(locate, todo, workers, threads=True):
        if error:
            print(f"failed: {file.name}: {reason(error)}", file=sys.stderr)
            code = 1
            continue
        url, size, _ = value
        total += size or 0
        into = f" -> {file.folder}" if file.folder else ""
        text = "unknown size" if size is None else decimal(size)
        print(f"{url} -> {file.path}{into} ({text})")
    print(f"dry run: {len(todo)} files, {decimal(total)}; nothing written")
    return code


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C ends the process: threads that wait for a server would go on.

    As after a kill, what is complete stays, and the next run goes on with the parts.
    """
    print("\ninterrupted; the same command goes on with the parts", file=sys.stderr)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def exit_code(command: Callable[[], int]) -> int:
    """Runs a tool: its code, 1 if something could not be had, 2 if it was misused."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, _end_at_once) for number in numbers]
    try:
        return command()
    except DownloadError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
