"""Processes that end when the one that started them does."""

import ctypes
import fcntl
import os
import select
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def end_with_parent() -> None:
    """Linux kills this process when its parent dies; elsewhere it does not.

    The parent may be gone by then: whoever knows its number should look afterwards.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def end_with_pipe(descriptor: int) -> None:
    """Linux kills this process when the last writer of a pipe is gone.

    Args:
        descriptor: The end that is read. All that was written must have been read.
    """
    if not sys.platform.startswith("linux"):
        return
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([descriptor], [], [], 0)[0]:  # it was gone before
        os._exit(128 + signal.SIGKILL)


def end_unless_alive(parent: int) -> None:
    """Ends this process if its parent died before it could ask for the above."""
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
