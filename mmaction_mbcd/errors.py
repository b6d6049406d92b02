"""How a tool ends that cannot go on: one line for the user, no traceback."""

import functools
import multiprocessing
import os
import os.path as osp
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_FIRST_ERROR = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun's processes leave what they died of; torchrun shows the first."""


class UsageError(Exception):
    """The command line asks for something that cannot work; the message says why."""


class CheckpointError(UsageError, ValueError):
    """A checkpoint is damaged, unsafe, of another model or of another experiment."""


class DivergenceError(UsageError, FloatingPointError):
    """Losses or gradients of a training are not finite."""


class Terminated(BaseException):
    """SIGTERM arrived. No ``except Exception`` has it, as with Ctrl-C."""


def _again() -> str:
    return "run the same command again"


@contextmanager
def one_line_errors(advice: Callable[[], str] = _again) -> Iterator[None]:
    """Ends a tool with one line on stderr, and no traceback.

    Exit code 2 after a :class:`UsageError`, 130 after Ctrl-C, 143 after SIGTERM, as
    batch systems send it. Forked processes, such as data workers, leave Ctrl-C to this
    one. What torchrun's processes die of is left where torchrun looks for it.

    Args:
        advice: What to do after an interruption; called once it has come.
    """
    with sigterm_raises():
        try:
            yield
        except UsageError as error:
            _leave_for_torchrun(error)
            # tools/dist_launch.py shows it, as its last line; under plain torchrun one
            # process speaks for all.
            if "MBCD_LAUNCHER" not in os.environ and _is_first():
                _say(f"error: {error}")
            raise SystemExit(2) from None
        except (KeyboardInterrupt, Terminated) as error:
            _end(type(error) is Terminated, advice)
        except Exception as error:
            # The same signal may have reached a data worker first.
            if "killed by signal: Terminated" in str(error):
                _end(True, advice)
            _leave_for_torchrun(error)
            raise


def _is_first() -> bool:
    return _FIRST_ERROR not in os.environ or os.environ.get("RANK", "0") == "0"


def _say(text: str) -> None:
    print(f"{osp.basename(sys.argv[0])}: {text}", file=sys.stderr)


def _end(terminated: bool, advice: Callable[[], str]) -> NoReturn:
    # A second Ctrl-C ends the tidying up; torchrun sends one to each of its own.
    impatient = signal.SIG_IGN if _FIRST_ERROR in os.environ else signal.SIG_DFL
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, impatient)
    # torch would complain of data workers that the same signal has ended; and theirs
    # is not the work that tidying up should wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.terminate()
    if _is_first():
        _say(f"{'terminated' if terminated else 'interrupted'}; {advice()}")
    number = signal.SIGTERM if terminated else signal.SIGINT
    raise SystemExit(128 + number) from None


def _leave_for_torchrun(error: Exception) -> None:
    if _FIRST_ERROR in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it SIGTERM raises :class:`Terminated`, in this process alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _prepare_forks()
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    _inside.append(os.getpid())
    try:
        yield
    finally:
        _inside.pop()
        if signal.getsignal(signal.SIGTERM) is _raise_terminated:
            signal.signal(signal.SIGTERM, before)


_inside: list[int] = []  # one entry for each sigterm_raises that is entered


@functools.cache
def _prepare_forks() -> None:
    os.register_at_fork(after_in_child=_leave_signals_to_parent)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _leave_signals_to_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent decides about it."""
    if _inside:
        # Not SIG_IGN, which another program that it starts would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_file(path: str, what: str) -> None:
    """Raises :class:`UsageError` unless ``path`` is a file, or a URL."""
    if "://" not in path and not osp.isfile(path):
        raise UsageError(f"{what} file not found: {path}")
