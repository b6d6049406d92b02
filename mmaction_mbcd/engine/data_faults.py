"""Faults of the data that only the process that trains or evaluates can see.

A data worker cannot say that it was killed, and none of them knows how many samples
the others have skipped.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mmaction.registry import DATASETS
from mmengine.logging import MMLogger, print_log
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader, Dataset

from ..datasets import AbsentModalityError, MultiModalDataset
from ..datasets.errors import DataError

FEWEST_SKIPPED = 3
"""Skipped samples that never stop a run unless there are as many, or no others."""

_LOOK = 1.0  # s between two looks at what the workers do
_EXAMPLES = 3  # of each kind that an error lists
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
_SIGNAL = re.compile(r"killed by signal: (.+?)\.? *$", re.MULTILINE)


class DataWorkerError(DataError, RuntimeError):
    """A data worker died, or was ended because a sample took too long."""


class TooManySkippedError(DataError, RuntimeError):
    """More samples cannot be read than the dataset's ``max_skipped`` admits."""


def innermost(dataset: Dataset) -> Iterator[MultiModalDataset]:
    """This package's datasets inside any ConcatDataset or RepeatDataset."""
    if isinstance(dataset, MultiModalDataset):
        yield dataset
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for each in inner:
        if each is not None:
            yield from innermost(each)


def refuse_absence(loop: BaseLoop | None) -> None:
    """Refuses the data of a loop in which no clip has a modality.

    Raises:
        AbsentModalityError: If so.
    """
    for dataset in innermost(loop.dataloader.dataset) if loop is not None else ():
        dataset.refuse_absence()


def absence_in_test(runner: Runner) -> list[str]:
    """Modalities that no test clip has: said before the training, not behind it.

    Test data that are not there yet, or that cannot be read for another reason, are the
    test's affair.
    """
    loader = runner._test_dataloader
    settings = loader.get("dataset") if isinstance(loader, Mapping) else None
    kind = settings.get("type") if isinstance(settings, Mapping) else None
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, MultiModalDataset)):
        return []
    muted = MMLogger.get_current_instance()
    before, muted.disabled = muted.disabled, True  # the test will say it
    try:
        for dataset in innermost(DATASETS.build(settings)):
            dataset.refuse_absence()
    except AbsentModalityError as error:
        return [f"test_dataloader: {error}"]
    except (DataError, ValueError, OSError):
        pass
    finally:
        muted.disabled = before
    return []


# --------------------------------------------------------------------------------
# Workers that die


def _loaders(runner: Runner) -> Iterator[DataLoader]:
    """The loaders that have been built; each may have workers that stay."""
    for name in ("_train_loop", "_val_loop", "_test_loop"):
        loader = getattr(getattr(runner, name, None), "dataloader", None)
        if loader is not None:
            yield loader


def _datasets(runner: Runner) -> list[MultiModalDataset]:
    return [d for loader in _loaders(runner) for d in innermost(loader.dataset)]


@contextmanager
def watching_workers(runner: Runner) -> Iterator[None]:
    """Ends data workers that hang, and says what a worker was reading when it died.

    A thread of this process looks at the clock once a second, so a decoder that holds
    its own process's GIL is ended too, and reading costs nothing.

    Raises:
        DataWorkerError: In place of PyTorch's error, which names a process.
    """
    done = threading.Event()
    watch = threading.Thread(target=_end_late_workers, args=(runner, done), daemon=True)
    watch.start()
    try:
        yield
    except RuntimeError as error:
        # The loader's own error has the one with the signal as its cause.
        text = f"{error}\n{error.__cause__ or ''}"
        dead = _DEAD.search(text)
        # Whoever terminates the workers terminates the run.
        ended = dead is None or "signal: Terminated" in text
        if ended or isinstance(error, DataError):
            raise
        pids = [int(pid) for pid in dead[1].split(",")]
        killed = _SIGNAL.search(text)
        how = f"was killed by signal {killed[1]}" if killed else "ended unexpectedly"
        lines = [_last_words(pid, how, _datasets(runner)) for pid in pids]
        raise DataWorkerError("; ".join(lines)) from error
    finally:
        done.set()
        watch.join()


def _end_late_workers(runner: Runner, done: threading.Event) -> None:
    said = set()
    while not done.wait(_LOOK):
        for dataset in _datasets(runner):
            for note in dataset.notes:
                limit = dataset.read_timeout
                if limit is None or note.seconds < limit:
                    continue
                if note.process != os.getpid():
                    _kill_child(note.process)
                elif note.index not in said:
                    said.add(note.index)
                    print_log(
                        f"reading {dataset.describe_note(note)} takes longer than "
                        f"{limit:g} s. With num_workers of 1 or more the run would end",
                        logger="current",
                        level=logging.WARNING,
                    )


def _kill_child(pid: int) -> None:
    """Kills a process, unless its ID belongs to another one by now."""
    try:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
    except (ChildProcessError, ProcessLookupError):
        pass


def _last_words(pid: int, how: str, datasets: list[MultiModalDataset]) -> str:
    for dataset in datasets:
        for note in dataset.notes:
            if note.process != pid:
                continue
            sample, limit = dataset.describe_note(note), dataset.read_timeout
            if limit is not None and note.seconds >= limit:
                return (
                    f"reading {sample} was not finished within {limit:g} s, and the "
                    "data worker was ended. Fetch or encode the file again, leave its "
                    "row out of the split file, or raise read_timeout of the dataset"
                )
            return (
                f"data worker {pid} {how} while it was reading {sample}. If that file "
                "makes the decoder crash (tools/data/check.py finds out), fetch or "
                "encode it again; if memory ran out, use fewer num_workers"
            )
    return (
        f"data worker {pid} {how}, and was reading no sample. If memory ran out, use "
        "fewer num_workers or a smaller batch_size"
    )


# --------------------------------------------------------------------------------
# Samples that are skipped


class SkippedSamples:
    """Counts what ``on_error='skip'`` leaves out of one pass over a loader.

    Each process counts its own samples and decides alone: it waits for no other one,
    and where one stops the launcher ends the rest.

    Args:
        loader: Whose datasets' largest ``max_skipped`` holds.
    """

    def __init__(self, loader: DataLoader) -> None:
        shares = [dataset.max_skipped for dataset in innermost(loader.dataset)]
        self.share = max(shares, default=1.0)
        sampler = getattr(loader, "sampler", loader.dataset)
        self.total = len(sampler)
        self.seen = 0
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)
        self.count = 0

    def add(self, data_batch: object) -> None:
        """Counts a batch.

        Raises:
            TooManySkippedError: If there are more than the share, and at least
                :data:`FEWEST_SKIPPED`.
        """
        samples = (
            data_batch.get("data_samples") if isinstance(data_batch, Mapping) else ()
        )
        for sample in samples or ():
            if sample.get("view", 0):
                continue  # the same clip again
            self.seen += 1
            if reason := sample.get("skipped", ""):
                self.count += 1
                kind = sample.get("fault", "") or "unreadable"
                self.reasons[kind][sample.get("sample_id", "?")] = reason
        if self.count >= FEWEST_SKIPPED and self.count > self.share * self.total:
            raise TooManySkippedError(
                f"{self.count} of {self.total} samples cannot be read, and "
                f"max_skipped={self.share:g} of the dataset admits "
                f"{self.share:.3g} of them: " + self._list()
            )

    def finish(self) -> None:
        """Ends the pass.

        Raises:
            TooManySkippedError: If no sample could be read.
        """
        if self.seen and self.count == self.seen:
            raise TooManySkippedError(
                f"none of the {self.seen} samples could be read: " + self._list()
            )

    def _list(self) -> str:
        """Every kind with its number and the first few."""
        parts = []
        for kind, reasons in self.reasons.items():
            shown = list(reasons.values())[:_EXAMPLES]
            more = len(reasons) - len(shown)
            rest = f"; and {more} more" if more else ""
            parts.append(f"{kind}: {len(reasons)}\n    " + "\n    ".join(shown) + rest)
        return "".join(f"\n  {part}" for part in parts)
