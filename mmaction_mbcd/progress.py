"""How far a long piece of work is, in a terminal or in a log."""

import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_DRAW = 0.5  # s between two looks at the counts
_FORECAST = 10.0  # s of work that a forecast is made from


def duration(seconds: float) -> str:
    """A time as people say it: ``'40 s'``, ``'12 min'``, ``'2 h 10 min'``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Meter:
    """Counts units of work, also those of other processes, and shows them.

    A terminal gets a bar with the time left; anything else gets a line now and then.
    Both get a forecast after some seconds. It writes to stderr.

    Processes count by sending through :attr:`sender`, a pipe and not a shared number:
    a process that dies cannot leave it locked.

    Args:
        title: What is being done; another may be set meanwhile.
        unit: Of the counts, in the plural.
        total: How many there are.
        workers: Processes, for the forecast.
        interval: Seconds between two lines where there is no terminal.

    Attributes:
        sender: Counts what is sent: a number as text.
    """

    def __init__(
        self,
        title: str,
        unit: str,
        total: int,
        workers: int = 1,
        interval: float = 30.0,
    ) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.workers, self.interval = workers, interval
        self.done = 0
        self._working: float | None = None  # since when, seen at the first counts
        self._counted_by_then = 0
        self._receiver, self.sender = multiprocessing.Pipe(duplex=False)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._forecast_made = False

    def __enter__(self) -> "Meter":
        self._said = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self.sender.close()
        self._receiver.close()

    def add(self, units: int) -> None:
        """Counts units in this process; a correction may be negative."""
        if units:
            self.sender.send_bytes(str(units).encode())

    def _run(self) -> None:
        console = Console(file=sys.stderr)
        columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[now]}"))
        with Progress(
            *columns, console=console, disable=not console.is_terminal
        ) as bar:
            task = bar.add_task(self.title, total=self.total, now="")
            while not self._end.wait(_DRAW):
                self._count()
                if (forecast := self._forecast()) is not None:
                    console.print(forecast, highlight=False)
                bar.update(
                    task, description=self.title, completed=self.done, now=self._state()
                )
                if not console.is_terminal and self._is_due():
                    console.print(f"{self.title}: {self._state()}", highlight=False)
            self._count()
            bar.update(task, completed=self.done, now=self._state())

    def _count(self) -> None:
        while self._receiver.poll():
            self.done += int(self._receiver.recv_bytes())
        if self._working is None and self.done > 0:
            # From here on: workers need seconds to start, and count nothing until then.
            self._working, self._counted_by_then = time.monotonic(), self.done

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._said < self.interval:
            return False
        self._said = now
        return True

    def _left(self) -> float | None:
        """Seconds, at the mean speed since the first counts."""
        counted = self.done - self._counted_by_then
        if self._working is None or counted <= 0:
            return None
        passed = time.monotonic() - self._working
        return passed / counted * max(self.total - self.done, 0)

    def _state(self) -> str:
        left = self._left()
        state = f"{self.done:,} of {self.total:,} {self.unit}"
        return state if left is None else f"{state}, {duration(left)} left"

    def _forecast(self) -> str | None:
        left = self._left()
        if self._forecast_made or left is None:
            return None
        passed = time.monotonic() - self._working
        if passed < _FORECAST:
            return None
        self._forecast_made = True
        return (
            f"{self.title}: about {duration(passed + left)} for {self.total:,} "
            f"{self.unit} with {self.workers} worker{'s' * (self.workers > 1)}"
        )


_sender: Connection | None = None
_counted = 0


def count_into(sender: Connection | None) -> None:
    """Where this process counts from now on."""
    global _sender
    _sender = sender


@contextmanager
def counting_into(sender: Connection | None) -> Iterator[None]:
    """Counts there for a while."""
    count_into(sender)
    try:
        yield
    finally:
        count_into(None)


def count(units: int = 1) -> None:
    """Counts units of work in this process."""
    global _counted
    _counted += units
    if _sender is not None and units:
        _sender.send_bytes(str(units).encode())


def counted() -> int:
    """Units that this process has counted in its life."""
    return _counted
