"""One run of an experiment by its name, as a job of a queue does it."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Sequence

from ..cli.settings_checks import nearest
from ..errors import UsageError
from .experiment import Experiment, PlannedRun
from .job import Launch, Share, spawned


def name_of(run: PlannedRun) -> str:
    """``'hac/mbcd_to-human_seed0_1a2b3c4d'``."""
    return f"{run.folder.path.parent.name}/{run.folder.path.name}"


def find(experiment: Experiment, name: str) -> PlannedRun:
    """The run of a name.

    Raises:
        UsageError: If the experiment has none.
    """
    named = {name_of(run): run for run in experiment.runs}
    if name not in named:
        raise UsageError(
            f"{experiment.out} holds no run {name!r}{nearest(name, list(named))}; the "
            "grid may have changed since the job was submitted"
        )
    return named[name]


def work(
    experiment: Experiment,
    run: PlannedRun,
    share: Share,
    launch: Launch = spawned,
    stop: threading.Event | None = None,
) -> None:
    """Does a run here, and nothing else.

    Args:
        experiment: Whose run it is.
        run: From :func:`find`.
        share: What it may use.
        launch: Starts a tool.
        stop: Set from outside to stop; the run can be continued.

    Raises:
        UsageError: If its config or data changed since it was planned, or as many
            processes as it is of do not train together here.
        ToolError: If a tool fails; the folder says so too.
        BusyError: If another process works on it.
        Stopped: If it was stopped.
    """
    experiment.check(run)
    if share.processes != experiment.processes:
        raise UsageError(
            f"the grid's runs are of {experiment.processes} processes that train "
            f"together, and this job has {share.processes} (GPUs): batches would be of "
            "another size. Ask for as many GPUs as --gpus-per-job said"
        )
    experiment.job(run, share).run(launch, stop)


def in_order(
    experiment: Experiment, runs: Sequence[PlannedRun]
) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """Runs that may start at once, and those that wait for some to end."""
    second = [run for run in runs if experiment.left_out(run)]
    return [run for run in runs if run not in second], second


def command_line(
    experiment: Experiment, run: PlannedRun, options: Sequence[str] = ()
) -> str:
    """What does a run, for a shell."""
    tool, out = experiment.repo / "tools" / "experiment.py", experiment.out.absolute()
    line = [sys.executable, str(tool), "job", "--out", str(out), *options, name_of(run)]
    return shlex.join(line)
