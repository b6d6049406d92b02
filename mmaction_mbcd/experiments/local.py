"""Runs on this machine: several at a time, each with its share of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch

from ..cores import usable_cores
from .experiment import Experiment, PlannedRun
from .job import Launch, Share, Stopped, ToolError, forked
from .run_folder import BusyError

MOST_WORKERS = 16
"""Data workers of a loader: each has tens of MB, and two batches on their way."""

Report = Callable[[PlannedRun, str, str], object]
"""Called with a run, what became of it (``'started'``, ``'finished'``, ``'failed'``,
``'busy'``, ``'interrupted'``) and the line that matters."""


def shares(
    jobs: int | None = None,
    gpus: Sequence[str] | None = None,
    per_job: int = 1,
    cores: int | None = None,
) -> list[Share]:
    """How a machine is divided into jobs.

    With GPUs there is one job per GPU (or per ``per_job`` of them), else one per two
    cores. A job's cores are shared by the threads of its training and its data
    workers.

    Args:
        jobs: How many at a time; from the machine if None. More jobs than GPUs share
            them in turn.
        gpus: Their names for ``CUDA_VISIBLE_DEVICES``; all that torch sees if None.
        per_job: GPUs of one job; with 0 the jobs train on the CPU, and see none.
        cores: Of the machine; those that this process may use if None.

    Raises:
        ValueError: For numbers that make no sense, or more GPUs per job than there are.

    With ``OMP_NUM_THREADS`` the user decides about threads; workers share the rest.
    """
    cores = cores or usable_cores()
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs are 1 or more, got {jobs}")
    if per_job < 0 or (gpus and not per_job):
        named = f" of the GPUs {', '.join(gpus)}" if gpus else ""
        raise ValueError(
            f"GPUs per job are 1 or more, or 0 for the CPU; got {per_job}{named}"
        )
    no_gpu = None if per_job else ()
    if gpus is None:
        gpus = _visible(torch.cuda.device_count()) if per_job else ()
    per_job = max(per_job, 1)
    if per_job > max(len(gpus), 1):
        raise ValueError(
            f"{per_job} GPUs per job were asked for, there are {len(gpus)}"
        )
    groups = [tuple(gpus[i : i + per_job]) for i in range(0, len(gpus), per_job)]
    groups = [group for group in groups if len(group) == per_job]
    count = jobs or len(groups) or max(1, cores // 2)
    own = max(1, cores // count // per_job)  # of each process
    # Without a GPU the training itself computes; with one it mostly waits for data.
    decided = _threads_of_the_user()
    threads = decided or (1 if groups else max(1, own // 2))
    # Data read by the training itself keep a GPU waiting.
    workers = min(MOST_WORKERS, max(1 if groups else 0, own - threads))
    return [
        Share(
            threads=None if decided else threads,
            workers=workers,
            devices=groups[i % len(groups)] if groups else no_gpu,
            processes=per_job if groups else 1,
        )
        for i in range(count)
    ]


def _visible(count: int) -> list[str]:
    """Names of the GPUs that torch sees; a job's are chosen among these."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]


def _threads_of_the_user() -> int | None:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def run_here(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    machine: Sequence[Share],
    report: Report,
    launch: Launch = forked,
) -> None:
    """Works on runs until each has ended, one way or another.

    A run that fails leaves the others alone. A run that waits for others (which choose
    its epoch) starts behind them.

    Args:
        experiment: Whose runs they are.
        runs: In the order of their start.
        machine: From :func:`shares`; one job at a time with each.
        report: Told of every beginning and end, from any thread.
        launch: Starts a tool.

    Raises:
        KeyboardInterrupt: And whatever else stops this process, once every running
            tool has ended; each has saved what it could.
    """
    waiting, free = list(runs), list(machine)
    stop = threading.Event()
    working: dict[Future, tuple[PlannedRun, Share]] = {}
    with ThreadPoolExecutor(len(machine)) as pool:
        try:
            while waiting or working:
                while free and (run := _next(experiment, waiting, working)):
                    share = free.pop()
                    job = pool.submit(
                        _work, experiment, run, share, report, launch, stop
                    )
                    working[job] = run, share
                done, _ = wait(working, timeout=1.0, return_when=FIRST_COMPLETED)
                for job in done:
                    free.append(working.pop(job)[1])
                    job.result()
        except BaseException:
            stop.set()
            raise


def _next(
    experiment: Experiment,
    waiting: list[PlannedRun],
    working: dict[Future, tuple[PlannedRun, Share]],
) -> PlannedRun | None:
    """Takes the first run that waits for no other one."""
    pending = {r.folder.path for r in waiting}
    pending |= {run.folder.path for run, _ in working.values()}
    for place, run in enumerate(waiting):
        needed = {each.folder.path for each in experiment.left_out(run)}
        if not needed & pending:
            return waiting.pop(place)
    return None


def _work(
    experiment: Experiment,
    run: PlannedRun,
    share: Share,
    report: Report,
    launch: Launch,
    stop: threading.Event,
) -> None:
    if stop.is_set():
        return
    try:
        report(run, "started", "")
        experiment.job(run, share).run(launch, stop)
    except ToolError as error:
        report(run, "failed", str(error))
    except BusyError as error:
        report(run, "busy", str(error))
    except Stopped:
        report(run, "interrupted", "")
    except Exception as error:  # such as a full disk: the others may go well
        report(run, "failed", f"{type(error).__name__}: {error}")
    else:
        report(run, "finished", "")
