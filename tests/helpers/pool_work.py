"""What the worker pool is given to do in its tests."""

import os
import resource
import signal
import time

import torch

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


def resident_after(mebibytes):
    """Peak of this process in MiB with a tensor of that size."""
    kept = torch.ones(mebibytes * 2**18)  # float32
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
