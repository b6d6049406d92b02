"""What runs in processes that a test sends signals to."""

import os
import signal
import time

from mmaction_mbcd import scripts


def in_a_group_of_its_own(*args):
    """A script whose process group is its own, with Ctrl-C as in a terminal."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scripts._run(*args)


def stop(number, *args, **kwargs):
    """Sends itself a signal, and works on."""
    os.kill(os.getpid(), number)
    time.sleep(10)
