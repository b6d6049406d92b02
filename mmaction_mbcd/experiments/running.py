"""Running the tools in processes of their own, with progress and kept output."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_STEP = re.compile(r"Epoch\((?:train|test)\)\s+\[(?:(\d+)\]\[)?\s*(\d+)/(\d+)\]")
_MAX_EPOCHS = re.compile(r"max_epochs\s*=\s*(\d+)")
_BEST_EPOCH = re.compile(r"best_source_top1_epoch_(\d+)\.pth$")
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
        log: File for the output.
        console: Where the bar is drawn.
        threads: OpenMP threads of the process; the environment's if None.

    Raises:
        RunError: If it ends with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    full = [sys.executable, str(repo / "tools" / command[0]), *map(str, command[1:])]
    columns = [
        TextColumn("{task.description:<18}"),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
    ]
    with (
        open(log, "w") as file,
        Progress(*columns, console=console) as progress,
        subprocess.Popen(
            full,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process,
    ):
        task = progress.add_task(title, total=None, at="")
        epochs = 0
        try:
            for line in process.stdout:
                file.write(line)
                if not epochs and (found := _MAX_EPOCHS.search(line)):
                    epochs = int(found.group(1))
                if found := _STEP.search(line):
                    epoch, step, steps = (int(x or 0) for x in found.groups())
                    whole = epochs if epoch else 1
                    progress.update(
                        task,
                        total=whole * steps,
                        completed=(max(epoch, 1) - 1) * steps + step,
                        at=f"epoch {epoch}/{epochs}" if epoch else "",
                    )
        except BaseException:
            process.terminate()
            raise
        total = progress.tasks[0].total or 1
        progress.update(task, total=total, completed=total)
    if process.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RunError(
            f"{' '.join(full)}\nended with code {process.returncode}; its output is "
            f"in {log} and ends with:\n{tail}"
        )


def best_checkpoint(work_dir: Path) -> tuple[Path, int]:
    """The one checkpoint that the sources' validation chose, and its epoch.

    Raises:
        RunError: If there is not exactly one.
    """
    found = list(work_dir.glob("best_source_top1_*.pth"))
    if len(found) != 1:
        raise RunError(
            f"{work_dir} should hold one best_source_top1_*.pth and holds "
            f"{len(found)}; did the run validate? Its output is in train.log there"
        )
    return found[0], int(_BEST_EPOCH.search(found[0].name).group(1))
