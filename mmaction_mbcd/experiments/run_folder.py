"""The folder of one run: what it is, how far it is, what it found."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..engine.run_report import PROGRESS_FILE
from ..evaluation.predictions import Predictions
from .grid import RunSpec

RUN_FILE, STATE_FILE, LOCK_FILE = "run.json", "state.json", "lock"
QUEUE_FILE = "queue.json"

STATES = ("waiting", "queued", "running", "interrupted", "failed", "finished")
"""Of a run. Queued: a batch system has it; as last asked, see :class:`InQueue`.
Interrupted: it was begun and nobody works on it."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class BusyError(RuntimeError):
    """Another process works on a run."""


@dataclass(frozen=True)
class InQueue:
    """What a batch system said of a run's job.

    Attributes:
        job: Its number.
        running: Whether it has begun; it waits otherwise.
        reason: Why it waits, in the batch system's words.
    """

    job: str
    running: bool
    reason: str = ""


@dataclass
class RunFolder:
    """The files of a run; each is replaced as a whole.

    ========================= =======================================================
    ``run.json``              what it is: the spec, the identity and its digest, and
                              of each start revision, versions and machine
    ``state.json``            how far it is
    ``lock``                  held by the process that works on it
    ``queue.json``            which job of a batch system does it
    ``train.log``             output of ``tools/train.py``, and ``test_*.log``
    ``results_*.json``        metrics by rule and evaluation
    ``predictions_*.npz``     what the model says of every clip, likewise
    ========================= =======================================================

    Beside them lies what a training leaves: checkpoints, MMEngine's logs, its config.

    Attributes:
        path: The folder.
        in_queue: What a batch system said of it; None unless one was asked and has it.
    """

    path: Path
    in_queue: InQueue | None = None
    _finished: RunFolder | None = field(default=None, repr=False, compare=False)

    def glance(self) -> RunFolder:
        """The folder as it is now: each file is read once at most, whatever is asked.

        A table of hundreds of runs on a network file system needs that. A run that was
        seen to be finished is not looked at again.
        """
        if self._finished is None:
            seen = _Glance(self.path, self.in_queue)
            if seen.state != "finished":
                return seen
            self._finished = seen
        return self._finished

    # ----------------------------------------------------------------- what it is

    def record(self, known: Mapping) -> None:
        """Writes what it is, unless it is there and can be read."""
        if not self.known:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RUN_FILE, dict(known))

    @property
    def known(self) -> dict:
        """What ``run.json`` holds; empty if there is none."""
        return read_json(self.path / RUN_FILE) or {}

    @property
    def spec(self) -> RunSpec:
        """The run."""
        return RunSpec.read(self.known["spec"])

    # ------------------------------------------------------------- how far it is

    @property
    def noted(self) -> dict:
        """What ``state.json`` holds; empty if there is none."""
        return read_json(self.path / STATE_FILE) or {}

    def note(self, **facts: object) -> None:
        """Adds to ``state.json``."""
        write_json(self.path / STATE_FILE, self.noted | facts)

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        said = self.noted.get("state", "waiting")
        if self.in_queue:
            begun = self.in_queue.running and said in ("running", "failed")
            return said if begun or said == "finished" else "queued"
        if said == "running" and not self.is_held():
            # Between the two looks it may have ended.
            now = self.noted.get("state")
            return "interrupted" if now == said else self.state
        return said if said in STATES else "waiting"

    def is_held(self) -> bool:
        """Whether a process works on it, on this machine or where flock reaches."""
        try:
            with open(self.path / LOCK_FILE, "rb") as file:
                return not _lock(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Works on it.

        Raises:
            BusyError: If another process does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK_FILE, "ab") as file:
            for attempt in range(5):  # is_held() of others holds it for a moment
                if _lock(file, fcntl.LOCK_EX):
                    break
                time.sleep(0.1 * attempt)
            else:
                noted = self.noted
                raise BusyError(
                    f"{self.path} is being worked on by process {noted.get('pid')} "
                    f"on {noted.get('host')}"
                )
            self.note(pid=os.getpid(), host=socket.gethostname())
            yield

    @property
    def queue(self) -> dict:
        """The job that does it, its log and when it was submitted; or empty."""
        return read_json(self.path / QUEUE_FILE) or {}

    def enqueue(self, job: str, log: Path) -> None:
        """Notes the job of a batch system that does it.

        Not in ``state.json``, which the job itself writes and may have begun to.
        """
        known = dict(job=job, log=str(log), submitted=time.time())
        write_json(self.path / QUEUE_FILE, known)

    def dequeue(self) -> None:
        """Notes that no job does it any more."""
        (self.path / QUEUE_FILE).unlink(missing_ok=True)
        self.in_queue = None

    @property
    def progress(self) -> dict:
        """Phase, done and total steps, epoch and epochs, as the run last noted."""
        return read_json(self.path / PROGRESS_FILE) or {}

    # ------------------------------------------------------------ what it found

    def results(self, rule: str, evaluation: str = "target") -> dict:
        """Metrics and facts of one test; empty if there is none."""
        return read_json(self.results_file(rule, evaluation)) or {}

    def results_file(self, rule: str, evaluation: str = "target") -> Path:
        """Where they are."""
        return self.path / f"results_{_key(rule, evaluation)}.json"

    def predictions_file(self, rule: str, evaluation: str = "target") -> Path:
        """What the model says of every clip."""
        return self.path / f"predictions_{_key(rule, evaluation)}.npz"

    def predictions(self, rule: str, evaluation: str = "target") -> Predictions | None:
        """The same, read; None if there are none."""
        path = self.predictions_file(rule, evaluation)
        return Predictions.load(path) if path.is_file() else None

    def error(self) -> str:
        """The line that says why it failed, or ``''``."""
        return self.noted.get("error", "")


class _Glance(RunFolder):
    """What :meth:`RunFolder.glance` makes."""

    def glance(self) -> RunFolder:
        return self

    @functools.cached_property
    def noted(self) -> dict:
        return super().noted

    @functools.cached_property
    def progress(self) -> dict:
        return super().progress

    @functools.cached_property
    def state(self) -> str:
        said = self.noted.get("state")
        if said == "running" and not self.in_queue and not self.is_held():
            # It may have ended between the two looks: then as it says now.
            del self.noted
        return super().state


def _lock(file: IO, kind: int) -> bool:
    """Whether it was had; it is where the file system knows no locks (some Lustre)."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _key(rule: str, evaluation: str) -> str:
    return rule if evaluation == "target" else f"{rule}_{evaluation}"


_SAYS_WHY = re.compile(r"\berror: |^(\w+\.)*\w*(Error|Exception|Interrupt)\b")


def line_that_matters(log: Path, start: int = 0) -> str:
    """The line of a tool's output that says why it ended.

    That is the last one which looks like an error, or else the last one.

    Args:
        log: File of the output.
        start: Byte from which on it is looked at.
    """
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # srun repeats the exit code of what it started.
    telling = [x for x in lines if _SAYS_WHY.search(x) and not x.startswith("srun: ")]
    return (telling or lines or [""])[-1]


def read_json(path: Path) -> dict | None:
    """A JSON file's object; None if there is no such file, or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, content: Mapping) -> None:
    """Replaces a file as a whole.

    Raises:
        OSError: If it cannot be written, such as on a full disk; the old one stays.
    """
    replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """The same, of any text."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
