"""Running the tools in processes of their own, with progress and kept output."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .. import scripts
from ..analysis import run_folders
from ..engine.run_report import PROGRESS_FILE
from ..progress import duration

_LOOK = 0.5  # s between two looks at how far a run is
RULE = "best source validation"


class RunError(RuntimeError):
    """A tool failed; the message holds the end of its output."""


def run_tool(
    repo: Path,
    command: Sequence[str],
    title: str,
    log: Path,
    console: Console,
    threads: int | None = None,
) -> None:
    """Runs one of the tools, keeps its output and follows its progress.

    Args:
        repo: The repository's root, where ``tools`` lies.
        command: Name of the script below ``tools`` and its arguments.
        title: Shown beside the bar.
        log: File for the output, in the run's work directory.
        console: Where the bar is drawn.
        threads: OpenMP threads of the process; the environment's if None.
            Processes are forked from one that did the imports
            (:mod:`mmaction_mbcd.scripts`).

    Raises:
        RunError: If it ends with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    (log.parent / PROGRESS_FILE).unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    script = repo / "tools" / command[0]
    scripts.prepare(threads)
    columns = [
        TextColumn("{task.description:<18}"),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, at="")
        watch = _Watch(log.parent / PROGRESS_FILE, progress, task)
        process = scripts.start_script(script, command[1:], log, threads=threads)
        try:
            while process.exitcode is None:
                watch.look()
                process.join(_LOOK)
        except BaseException:
            process.terminate()
            process.join()
            raise
        watch.look()
        total = progress.tasks[0].total or 1
        progress.update(task, total=total, completed=total)
    if process.exitcode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RunError(
            f"python {script} {' '.join(map(str, command[1:]))}\nended with code "
            f"{process.exitcode}; its output is in {log} and ends with:\n{tail}"
        )


class _Watch:
    """Follows ``progress.json`` of a run, see :class:`.RunReportHook`."""

    def __init__(self, path: Path, progress: Progress, task: TaskID) -> None:
        self.path, self.progress, self.task = path, progress, task
        self.first: tuple[float, int] | None = None  # when, and the step then

    def look(self) -> None:
        try:
            now = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if now["phase"] == "validation":
            self.progress.update(self.task, at=f"epoch {now['epoch']}, validating")
            return
        self.progress.update(
            self.task,
            total=now["total"],
            completed=now["done"],
            at=self._said(now),
        )

    def _said(self, now: dict) -> str:
        said = f"epoch {now['epoch']}/{now['epochs']}" if "epoch" in now else ""
        self.first = self.first or (time.monotonic(), now["done"])
        began, start = self.first
        if now["done"] == start:
            return said
        # Validations so far are in it, so those to come are too.
        each = (time.monotonic() - began) / (now["done"] - start)
        left = f"{duration(each * (now['total'] - now['done']))} left"
        return f"{said}, {left}" if said else left


def best_checkpoint(work_dir: Path) -> tuple[Path, int]:
    """The checkpoint that the sources' validation chose, and its epoch.

    Raises:
        RunError: If there is none.
    """
    best = run_folders.best_checkpoint(work_dir)
    if best is None:
        raise RunError(
            f"{work_dir} holds no best_source_top1_epoch_N.pth; did the run validate? "
            "Its output is in train.log there"
        )
    return best, run_folders.epoch_of(best)
