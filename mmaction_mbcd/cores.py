"""The cores that this process may use, and how its threads share them with others.

Jobs on one machine cannot know of each other. OpenMP threads that wait for work spin,
for milliseconds in GNU's runtime, which torch comes with: of two jobs with as many
threads as cores, each mostly waits for a thread that the other's spinning keeps from
running. Threads that sleep while they wait need to know of nobody.

No more than the standard library and joblib is imported: ``tools/dist_launch.py`` reads
this file alone.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from joblib import cpu_count

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


_ALLOCATION = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def usable_cores() -> int:
    """Cores of the machine that this process and those beside it may use.

    The least of: those that there are, the process's affinity, a container's quota
    (cgroup v1 and v2, rounded up), and what Slurm gave to each task.
    """
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    cores = cpu_count()
    return min(cores, int(task)) if task.isdigit() and int(task) else cores


def own_cores(processes: int | None = None) -> int:
    """This process's part of :func:`usable_cores`, at least one.

    Args:
        processes: How many train together on this machine; if None what torchrun says,
            or one.
    """
    if processes is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, usable_cores() // processes)


@contextmanager
def shared_cores() -> Iterator[None]:
    """Around the first import of torch: threads sleep while they wait, and fit.

    ``OMP_WAIT_POLICY`` becomes ``PASSIVE``, also for processes that this one starts,
    and torch gets no more threads than :func:`own_cores`. What the user's environment
    says about either stays and holds. Where torch is loaded already, whoever loaded it
    has decided: nothing is changed.
    """
    if "torch" in sys.modules:
        yield
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read as the runtime is loaded
    yield
    if not any(name in os.environ for name in _THREADS):
        _limit_threads()


def keep_freed_memory(kept: int = 256 << 20, mapped: int = 32 << 20) -> bool:
    """Has the C library keep what is freed for the next allocation.

    By default GNU's gives megabytes back to the system as soon as they are free, and
    each of their pages is fetched and cleared again a moment later: two fifths of
    the work of reading clips. What the user's environment says of it stays and holds.
    docs/performance.md has what it costs and saves.

    Args:
        kept: Bytes of free memory at the heap's end that a process keeps at most.
        mapped: Bytes from which on an allocation goes to the system by itself.

    Returns:
        bool: Whether it was done; other C libraries cannot be told.
    """
    if any(name in os.environ for name in _ALLOCATION):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    set_both = (_M_MMAP_THRESHOLD, mapped), (_M_TRIM_THRESHOLD, kept)
    return all(mallopt(name, value) == 1 for name, value in set_both)


def keep_freed_memory_of_a_worker() -> bool:
    """The same for data workers, of which there are many, and which train nothing.

    A training changes tensors of 4 to 32 MB all the time, a worker reads few.
    """
    return keep_freed_memory(64 << 20, 4 << 20)


def _limit_threads() -> None:
    import torch

    if (own := own_cores()) < torch.get_num_threads():
        torch.set_num_threads(own)
