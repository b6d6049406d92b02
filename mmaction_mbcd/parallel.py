"""The one worker pool of this package: many items, several at a time."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cv2
import torch

from . import progress, scripts


class WorkerDiedError(RuntimeError):
    """The process that worked on an item crashed, or was killed."""


class WorkerTimeoutError(RuntimeError):
    """An item was not finished in time."""


class Outcome(NamedTuple):
    """How an item ended: what the function returned, or what it raised.

    Attributes:
        item: As it was given.
        value: What the function returned; None where it failed.
        error: None, what the function raised, or the errors of this module.
    """

    item: Any
    value: Any = None
    error: Exception | None = None


def run_parallel(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int,
    *,
    threads: bool = False,
    timeout: float | None = None,
    sender: Connection | None = None,
    abandoned: Callable[[Any], None] = lambda item: None,
) -> Generator[Outcome, None, None]:
    """Calls ``function(item)`` for all items, and yields outcomes as they end.

    An item that crashes its process, or hangs, costs only itself: whatever was being
    done beside it is done again, each alone. Close the generator, or leave it by an
    exception, to stop: processes are killed.

    Args:
        function: Picklable, as the items are, unless ``threads``.
        items: One at a time goes to each worker.
        workers: Processes of one thread each. With one, and no ``timeout``, this
            process does all.
        threads: Threads instead of processes, for work that waits for the network.
            They cannot be killed: closing waits for what is running.
        timeout: Seconds for one item, counted from when it is handed out. Processes
            only.
        sender: Where processes count progress, see :class:`.progress.Meter`.
        abandoned: Called with each item whose process was killed, before it is tried
            again or given up: removes half-written files.

    Yields:
        Outcome: In the order in which they end.
    """
    if threads:
        with ThreadPoolExecutor(workers) as pool:
            yield from _finish(pool, function, deque(items), workers, None, {})
        return
    if workers == 1 and timeout is None:
        with _single_threaded(), progress.counting_into(sender):
            for item in items:
                yield _attempt(function, item)
        return
    queue, suspects = deque(items), []
    while queue:
        suspects += yield from _in_processes(
            function, queue, workers, timeout, sender, abandoned
        )
    # Who crashed or hung shows when alone.
    for item in suspects:
        begin = time.monotonic()
        left = yield from _in_processes(
            function, deque([item]), 1, timeout, sender, abandoned
        )
        if left:
            yield Outcome(item, error=_given_up(begin, timeout))


def _given_up(begin: float, timeout: float | None) -> Exception:
    if timeout is not None and time.monotonic() - begin >= timeout:
        return WorkerTimeoutError(f"it was not finished within {timeout:g} s")
    return WorkerDiedError(
        "the process that worked on it died (a crash of the decoder, or out of memory: "
        "use fewer workers)"
    )


def _attempt(function: Callable[[Any], Any], item: Any) -> Outcome:
    try:
        return Outcome(item, function(item))
    except Exception as error:  # a fault of one item must not stop the others
        return Outcome(item, error=_portable(error))


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot travel between processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _in_processes(
    function: Callable[[Any], Any],
    queue: deque,
    workers: int,
    timeout: float | None,
    sender: Connection | None,
    abandoned: Callable[[Any], None],
) -> Generator[Outcome, None, list]:
    """Empties the queue; after a crash, returns the items that were being done."""
    # Importing this package takes seconds; the server does it once and then forks.
    context = multiprocessing.get_context("forkserver")
    module = getattr(function, "__module__", None) or type(function).__module__
    context.set_forkserver_preload([__name__, module])
    scripts.start_server()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start_worker, (sender,))
    running: dict[Future, Any] = {}
    try:
        yield from _finish(pool, function, queue, workers, timeout, running)
    except (BrokenProcessPool, WorkerTimeoutError):
        pass
    finally:
        if running:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)
        for item in running.values():
            abandoned(item)
    return list(running.values())


def _finish(
    pool: Executor,
    function: Callable[[Any], Any],
    queue: deque,
    workers: int,
    timeout: float | None,
    running: dict[Future, Any],
) -> Generator[Outcome, None, None]:
    """Hands out items, one to a worker at a time, and notes who runs in ``running``."""
    deadlines: dict[Future, float] = {}
    while queue or running:
        while queue and len(running) < workers:
            future = pool.submit(_attempt, function, queue[0])
            running[future] = queue.popleft()
            deadlines[future] = time.monotonic() + (timeout or math.inf)
        left = max(min(deadlines.values()) - time.monotonic(), 0.0)
        limit = None if math.isinf(left) else left
        done = wait(running, limit, FIRST_COMPLETED).done
        if not done:
            raise WorkerTimeoutError
        for future in done:
            outcome = future.result()
            del running[future], deadlines[future]
            yield outcome


def _start_worker(sender: Connection | None) -> None:
    progress.count_into(sender)
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One OpenCV thread, as in a worker process: outputs do not depend on it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
