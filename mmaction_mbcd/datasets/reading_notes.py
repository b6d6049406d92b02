"""What each data worker is reading, for when it dies or hangs.

PyTorch says of a dead worker its number, not what it was reading. So each worker notes
that in shared memory before it begins, and the main process looks there.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

import torch
from torch.utils.data import get_worker_info

_SLOTS = 512  # more workers than that share notes
_NOTHING = torch.zeros(4, dtype=torch.int64)


class Note(NamedTuple):
    """What a worker was reading.

    Attributes:
        index: Of the row.
        modality: Its place among the dataset's modalities; -1 before the first.
        seconds: How long ago it began.
    """

    index: int
    modality: int
    seconds: float


@functools.cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w")


class ReadingNotes:
    """A line in shared memory for each data worker.

    It lives as long as its dataset and has no name in the file system.
    """

    def __init__(self) -> None:
        # Each line: process, row + 1, place of the modality + 1, start (ns).
        table = torch.zeros(_SLOTS, 4, dtype=torch.int64)
        self._table = table.share_memory_()

    @contextmanager
    def reading(self, index: int, limit: float | None) -> Iterator[None]:
        """Notes that a row is being read, and ends the process if it takes too long.

        Outside a data worker nothing is noted and nothing is ended.

        Args:
            index: Of the row.
            limit: Seconds; None: no limit. The clock is in C and needs no GIL, so a
                decoder that holds it is ended too.
        """
        worker = get_worker_info()
        if worker is None:
            yield
            return
        line = self._table[worker.id % _SLOTS]
        now = time.monotonic_ns()
        line.copy_(torch.tensor([os.getpid(), index + 1, 0, now]))
        if limit is not None:
            # The traceback would not name the file; the main process does.
            faulthandler.dump_traceback_later(limit, exit=True, file=_nowhere())
        try:
            yield
        finally:
            if limit is not None:
                faulthandler.cancel_dump_traceback_later()
            line.copy_(_NOTHING)

    def note_modality(self, place: int) -> None:
        """Notes which modality of the row comes next."""
        worker = get_worker_info()
        if worker is not None:
            self._table[worker.id % _SLOTS, 2] = place + 1

    def of(self, process: int) -> Note | None:
        """What a process is reading, or was when it died; None if nothing is known."""
        for pid, row, modality, begun in self._table.tolist():
            if pid == process and row:
                seconds = (time.monotonic_ns() - begun) / 1e9
                return Note(row - 1, modality - 1, seconds)
        return None
