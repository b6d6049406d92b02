"""How far the runs of a grid are, as a table that can be watched."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..progress import duration
from .experiment import Experiment, PlannedRun

_COLOURS = {
    "finished": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "bold red",
    "interrupted": "yellow",
    "waiting": "dim",
}


def seen_now(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs as they are at this moment, each file read once at most."""
    return [replace(run, folder=run.folder.glance()) for run in runs]


def counts(runs: Sequence[PlannedRun]) -> Counter:
    """Runs by their state."""
    return Counter(run.folder.state for run in runs)


def _seconds(run: PlannedRun) -> float | None:
    """What a finished run took, its tools together."""
    noted = run.folder.noted
    if noted.get("state") != "finished":
        return None
    return sum(noted.get("seconds", {}).values()) or None


def seconds_left(run: PlannedRun) -> float | None:
    """Of the phase that is running, at its mean speed; None if it is not known."""
    now = run.folder.progress
    done = now.get("done", 0) - now.get("first", 0)
    if done <= 0 or "seconds" not in now or now["phase"] == "validation":
        return None
    return now["seconds"] / done * (now["total"] - now["done"])


def at(run: PlannedRun) -> str:
    """Where it is: ``'train, epoch 3/20'``, or why it waits in a queue."""
    job, state = run.folder.in_queue, run.folder.state
    if job and state == "queued":
        why = "starting" if job.running else f"waiting: {job.reason or 'no reason yet'}"
        return f"job {job.job}, {why}"
    if state == "interrupted" and run.folder.error():
        return run.folder.error()
    progress, phase = run.folder.progress, run.folder.noted.get("phase", "")
    if progress.get("phase") == "validation":
        return f"{phase}, validating epoch {progress.get('epoch')}"
    if "epoch" in progress:
        return f"{phase}, epoch {progress['epoch']}/{progress['epochs']}"
    return phase


def table(experiment: Experiment, every: bool = False) -> Table:
    """The runs: those that run, wait after a failure or were interrupted, or all.

    Args:
        experiment: Its runs.
        every: Those that are finished or wait as well.
    """
    runs = seen_now(experiment.runs)
    shown = Table(title=headline(runs), title_justify="left")
    for name in ("run", "state", "at", "left, or took"):
        shown.add_column(name, no_wrap=name not in ("run", "at"))
    for run in runs:
        state = run.folder.state
        if state in ("waiting", "finished") and not every:
            continue
        left = seconds_left(run) if state == "running" else _seconds(run)
        shown.add_row(
            Text(title(run)),
            Text(state, style=_COLOURS[state]),
            Text(run.folder.error() if state == "failed" else at(run)),
            "" if left is None else duration(left),
        )
    return shown


def title(run: PlannedRun) -> str:
    """A run in words: ``'hac mbcd video-audio to-human, seed 0'``."""
    spec = run.spec
    parts = [spec.dataset, spec.name, "-".join(spec.modalities), spec.place]
    if spec.purpose != "grid":
        parts.append(f"({spec.purpose})")
    return " ".join(filter(None, parts)) + f", seed {spec.seed}"


def headline(runs: Sequence[PlannedRun]) -> str:
    """``'90 runs: 12 finished, 2 running, 76 waiting; about 2 h left'``."""
    runs = seen_now(runs)
    found = counts(runs)
    text = f"{len(runs)} runs: " + ", ".join(
        f"{found[state]} {state}" for state in _COLOURS if found[state]
    )
    left = forecast(runs)
    return text if left is None else f"{text}; about {duration(left)} left"


def forecast(runs: Sequence[PlannedRun]) -> float | None:
    """Seconds until all have ended, from those that have; None if nothing is left.

    A run takes as long as the mean of its method's finished ones, or of all; as many
    run side by side as do now.
    """
    runs = seen_now(runs)
    taken: dict[str, list[float]] = {}
    for run in runs:
        if (seconds := _seconds(run)) is not None:
            taken.setdefault(run.spec.alike.name, []).append(seconds)
    if not taken:
        return None
    every = [s for each in taken.values() for s in each]
    mean = sum(every) / len(every)
    left, side_by_side = 0.0, 0
    unfinished = [run for run in runs if run.folder.state not in ("finished", "failed")]
    for run in unfinished:
        state = run.folder.state
        own = taken.get(run.spec.alike.name)
        whole = sum(own) / len(own) if own else mean
        if state == "running":
            side_by_side += 1
            began = run.folder.noted.get("started", time.time())
            whole = max(0.0, whole - (time.time() - began))
        left += whole
    return left / max(side_by_side, 1) if unfinished else None


class Watch:
    """Shows how far a grid is while it runs.

    A terminal gets a table that lives; anything else a line for every event.
    """

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self.experiment, self.console = experiment, console
        self._lines = threading.Lock()
        self._live = Live(
            console=console, refresh_per_second=1, get_renderable=self._page
        )

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def _page(self) -> Group:
        return Group(table(self.experiment))

    def report(self, run: PlannedRun, what: str, line: str) -> None:
        """Says what became of a run."""
        if self.console.is_terminal and what not in ("failed", "busy"):
            return
        with self._lines:
            now = time.strftime("%H:%M:%S")
            text = f"{now}  {what:<11} {title(run)}"
            if what == "finished":
                text += f"  ({_counted(self.experiment)})"
            elif line:
                text += f"\n          {line}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _counted(experiment: Experiment) -> str:
    runs = seen_now(experiment.runs)
    text = f"{counts(runs)['finished']} of {len(runs)}"
    left = forecast(runs)
    return text if left is None else f"{text}, about {duration(left)} left"
