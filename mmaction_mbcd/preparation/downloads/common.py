"""Options, errors, and what a worker tells the others about its file."""

import json
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

CHUNK = 1 << 18
"""Bytes that are read at a time, at most."""


class DownloadError(Exception):
    """A file cannot be had. The message says why, and what would help."""


class DamagedArchiveError(DownloadError):
    """An archive that is not one, or that ends too early."""


class StoppedError(Exception):
    """The user stopped the run."""


@dataclass(frozen=True)
class Options:
    """How files are fetched.

    Attributes:
        workers: Files at the same time.
        attempts: Tries in a row that may fail.
        timeout: Seconds for connecting, and without data before a try is given up.
        backoff: Seconds before the second try; doubled for each further one.
        keep_archives: Do not delete an archive after unpacking it.
        quiet: Show no progress.
        dry_run: Print what would be done, and write nothing.
        sizes: With ``dry_run``, ask the servers for sizes that are not published.

    Raises:
        ValueError: If a number is out of range, or ``sizes`` has no effect.
    """

    workers: int = 4
    attempts: int = 5
    timeout: float = 30.0
    backoff: float = 1.0
    keep_archives: bool = False
    quiet: bool = False
    dry_run: bool = False
    sizes: bool = False

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("attempts", 1), ("backoff", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be positive, got {self.timeout}")
        if self.sizes and not self.dry_run:
            raise ValueError("--sizes belongs to --dry-run")


class Monitor:
    """What a worker tells the others about its file.

    Attributes:
        name: Of the file.
        phase: ``'fetching'``, ``'checking'``, ``'unpacking'`` ...
        position: Bytes of the phase that are done.
        size: Bytes of the phase, if known.
        best: The largest position so far, over all tries.
        received: Bytes that came over the network.
    """

    def __init__(
        self,
        name: str = "",
        stop: threading.Event | None = None,
        siblings: Sequence["Monitor"] = (),
    ) -> None:
        self.name = name
        self.phase, self.position, self.size = "waiting", 0, None
        self.best = self.received = 0
        self._stop = stop or threading.Event()
        self._siblings = siblings or [self]

    def begin(self, phase: str, size: int | None, position: int = 0) -> None:
        """Starts a phase."""
        self.phase, self.size, self.position = phase, size, position

    def advance(self, count: int) -> None:
        """Adds bytes to the phase."""
        self.check()
        self.position += count

    def check(self) -> None:
        """Raises :class:`StoppedError` if the user has stopped the run."""
        if self._stop.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Sleeps, but not longer than the run."""
        self._stop.wait(seconds)
        self.check()

    def check_room(self, folder: Path) -> None:
        """Raises :class:`DownloadError` if the disk cannot hold what is under way."""
        need = sum(
            max(m.size - m.position, 0)
            for m in list(self._siblings)
            if m.phase in ("fetching", "unpacking") and m.size
        )
        free = shutil.disk_usage(folder).free
        if need > free:
            raise DownloadError(
                f"{decimal(need)} more are needed for what is being fetched and "
                f"unpacked, but {folder} has {decimal(free)} free. Make room and run "
                "it again"
            )


def write_json(path: Path, value: dict) -> None:
    """Writes a file that is whole, whatever ends this process."""
    temporary = path.with_name(f"{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict:
    """The object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
