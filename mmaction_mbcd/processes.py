"""Processes that end when the one that started them does."""

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def end_with_parent() -> None:
    """Linux kills this process when its parent dies; elsewhere it does not.

    The parent may be gone by then: whoever knows its number should look afterwards.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def end_unless_alive(parent: int) -> None:
    """Ends this process if its parent died before it could ask for the above."""
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
