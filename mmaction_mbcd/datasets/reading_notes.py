"""What each process is reading, for when it dies or hangs.

PyTorch says of a dead worker its number, not what it was reading. So each process notes
that in shared memory before it begins, and the main process looks there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

_SLOTS = 512  # more workers than that share notes
_NOTHING = torch.zeros(4, dtype=torch.int64)


class Note(NamedTuple):
    """What a process is reading.

    Attributes:
        process: Its ID.
        index: Of the row.
        modality: Its place among the dataset's modalities; -1 before the first.
        seconds: How long ago it began.
    """

    process: int
    index: int
    modality: int
    seconds: float


def _slot() -> int:
    """Of this process; the last one belongs to whoever is not a data worker."""
    worker = get_worker_info()
    return _SLOTS if worker is None else worker.id % _SLOTS


class ReadingNotes:
    """A line in shared memory for each process that reads.

    It lives as long as its dataset and has no name in the file system. Writing a line
    takes microseconds.
    """

    def __init__(self) -> None:
        # Each line: process, row + 1, place of the modality + 1, start (ns).
        table = torch.zeros(_SLOTS + 1, 4, dtype=torch.int64)
        self._table = table.share_memory_()

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Notes that this process reads a row."""
        line = self._table[_slot()]
        # The clock is that of the machine, the same in all processes.
        line.copy_(torch.tensor([os.getpid(), index + 1, 0, time.monotonic_ns()]))
        try:
            yield
        finally:
            line.copy_(_NOTHING)

    def note_modality(self, place: int) -> None:
        """Notes which modality of the row comes next."""
        self._table[_slot(), 2] = place + 1

    def __iter__(self) -> Iterator[Note]:
        """What is being read, or was when its process died."""
        now = time.monotonic_ns()
        for pid, row, modality, begun in self._table.tolist():
            if row:
                yield Note(pid, row - 1, modality - 1, (now - begun) / 1e9)
