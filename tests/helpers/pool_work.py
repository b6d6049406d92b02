"""What the worker pool is given to do in its tests."""

import os
import signal
import time

from mmaction_mbcd import progress


def work(item):
    """Squares numbers; words say what should go wrong."""
    progress.count()
    if item == "raise":
        raise ValueError("seven")
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(1000)
    if item == "odd error":
        raise OddError("a", "b")
    return item * item, os.getpid()


class OddError(Exception):
    """It cannot be unpickled: its constructor wants two arguments."""

    def __init__(self, first, second):
        super().__init__(first + second)


def waits(mark):
    """Says who it is and waits."""
    with open(mark, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
