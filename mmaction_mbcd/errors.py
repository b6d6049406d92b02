"""How a tool ends that cannot go on: one line for the user, no traceback."""

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
    with _signals_raise():
        try:
            yield
        except UsageError as error:
            _leave_for_torchrun(error)
            # One process speaks for all; torchrun shows what another one says.
            if _FIRST_ERROR not in os.environ or os.environ.get("RANK", "0") == "0":
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


def _say(text: str) -> None:
    print(f"{osp.basename(sys.argv[0])}: {text}", file=sys.stderr)


def _end(terminated: bool, advice: Callable[[], str]) -> NoReturn:
    # A second Ctrl-C ends the tidying up; torchrun sends one to each of its own.
    impatient = signal.SIG_IGN if _FIRST_ERROR in os.environ else signal.SIG_DFL
    for number in (signal.SIGINT, signal.SIGTERM):
        _set(number, impatient)
    if os.environ.get("RANK", "0") == "0":
        _say(f"{'terminated' if terminated else 'interrupted'}; {advice()}")
    number = signal.SIGTERM if terminated else signal.SIGINT
    raise SystemExit(128 + number) from None


def _leave_for_torchrun(error: Exception) -> None:
    if _FIRST_ERROR in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Within it SIGTERM raises :class:`Terminated`; children do not inherit that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not hasattr(_signals_raise, "depth"):
        _signals_raise.depth = 0
        os.register_at_fork(after_in_child=_leave_signals_to_parent)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM,)}
    _set(signal.SIGTERM, _raise_terminated)
    _signals_raise.depth += 1
    try:
        yield
    except SystemExit as end:
        # Tidying up comes behind this context, and the signal may come again.
        if end.code not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            _restore(before)
        raise
    except BaseException:
        _restore(before)
        raise
    else:
        _restore(before)
    finally:
        _signals_raise.depth -= 1


def _restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        _set(number, handler)


def _set(number: int, handler: object) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(number, handler)


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _leave_signals_to_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent decides about it."""
    if _signals_raise.depth:
        # Not SIG_IGN, which another program that it starts would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_file(path: str, what: str) -> None:
    """Raises :class:`UsageError` unless ``path`` is a file, or a URL."""
    if "://" not in path and not osp.isfile(path):
        raise UsageError(f"{what} file not found: {path}")
