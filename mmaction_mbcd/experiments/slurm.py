"""Runs as jobs of Slurm, one each, submitted as arrays through submitit.

A job does what the local executor does with a run. When its time limit is near, Slurm
sends it SIGUSR2: it ends its tool and puts itself into the queue again, as long as
something was saved since it began. A job that is pre-empted is put there by Slurm. Both
go on at the run's last checkpoint, to the same bits.

What a run is told by Slurm lies in its folder: ``queue.json`` names the job. Slurm is
asked with ``squeue``, and with ``sacct`` about what that has forgotten.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.core.utils import UncompletedJobError as NotRequeued
from submitit.helpers import Checkpointable, DelayedSubmission

from ..errors import UsageError
from . import local
from .experiment import Experiment, PlannedRun
from .job import Share, Stopped
from .run_folder import InQueue, RunFolder, line_that_matters
from .single import find, in_order, name_of, work

FOLDER = "slurm"
"""Of an experiment's jobs: their scripts and what they print."""

_WARNING = 120  # s before the time limit; a tool ends within seconds
_ARRAY = 1000  # jobs; Slurm's MaxArraySize is 1001 unless configured
_OURS = {
    "array": "--jobs",
    "time": "--time",
    "output": None,
    "error": None,
    "open-mode": None,
    "signal": None,
    "ntasks": "--gpus-per-job",
    "ntasks-per-node": "--gpus-per-job",
    "nodes": None,
}

_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")
_ENDED = {
    "COMPLETED": "",
    "FAILED": "",
    "TIMEOUT": "the time limit passed",
    "DEADLINE": "the deadline passed",
    "OUT_OF_MEMORY": "out of memory; ask for more with --memory",
    "NODE_FAIL": "the node failed",
    "BOOT_FAIL": "the node did not start",
    "CANCELLED": "cancelled",
    "PREEMPTED": "pre-empted, and not put into the queue again",
    "REVOKED": "cancelled",
}
_CAN_GO_ON = ("CANCELLED", "PREEMPTED", "REVOKED", "COMPLETED")
"""Not the run's fault."""


class UnreachableError(RuntimeError):
    """Slurm cannot be asked; the message says what it said."""


# ------------------------------------------------------------------------- submitting


@dataclass(frozen=True)
class Request:
    """What each job asks of Slurm.

    Attributes:
        minutes: Time limit.
        partition: Slurm's default if None; so with the next two.
        account: Who pays.
        qos: Quality of service.
        gpus: Of one node; each gets a process, through torchrun. 0 for none.
        cpus: Of the job; 4 per GPU, or 2 without, if None.
        memory: Of the job, such as ``'32G'``; Slurm's default if None.
        at_a_time: How many jobs of an array run side by side; all if None.
        more: Further options of ``sbatch``, without dashes; True for a flag.
    """

    minutes: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int = 1
    cpus: int | None = None
    memory: str | None = None
    at_a_time: int | None = None
    more: Mapping[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.more:
            if key.replace("_", "-") in _OURS:
                own = _OURS[key.replace("_", "-")]
                raise UsageError(
                    f"--sbatch {key} is set here already"
                    + (f"; say {own} instead" if own else "")
                )
        for name, least in (("minutes", 1), ("gpus", 0), ("cpus", 1), ("at_a_time", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"Slurm: {name} is {least} or more, got {value}")

    @property
    def cores(self) -> int:
        """Of the job."""
        return self.cpus or (4 * self.gpus or 2)

    def parameters(self) -> dict:
        """Of :class:`submitit.SlurmExecutor`."""
        more = dict(self.more)
        if "no-requeue" not in more and "no_requeue" not in more:
            more.setdefault("requeue", True)  # whatever the cluster's default is
        known = dict(
            job_name="mbcd",
            time=self.minutes,
            partition=self.partition,
            account=self.account,
            qos=self.qos,
            gpus_per_node=self.gpus or None,
            ntasks_per_node=1,  # torchrun starts the others
            cpus_per_task=self.cores,
            mem=self.memory,
            # At a quarter of a short limit: Slurm's clock ticks every half minute.
            signal_delay_s=min(_WARNING, 15 * self.minutes),
            array_parallelism=self.at_a_time or _ARRAY,
            # From 22.05 on srun does not take it from the job.
            srun_args=[f"--cpus-per-task={self.cores}"],
            additional_parameters=more,
        )
        given = {name: value for name, value in known.items() if value is not None}
        return given | dict(wckey=None)  # submitit's own, which clusters may refuse


def minutes(text: str) -> int:
    """A time limit as ``sbatch`` reads it: ``90``, ``1:30:00``, ``2-12``, ``2-12:30``.

    Returns:
        Whole minutes, rounded up.

    Raises:
        ValueError: If it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(
            f"a time limit is minutes, HH:MM:SS or DAYS-HH[:MM[:SS]], got {text!r}"
        )
    days, *rest = match.groups()
    numbers = [int(each) for each in rest if each is not None]
    if days is None and len(numbers) < 3:  # MM or MM:SS
        numbers = [0, *numbers]
    hours, minute, seconds = [*numbers, 0, 0][:3]
    return 1440 * int(days or 0) + 60 * hours + minute + math.ceil(seconds / 60)


def submit(
    experiment: Experiment, runs: Sequence[PlannedRun], request: Request
) -> list[str]:
    """Puts runs into Slurm's queue.

    Runs that wait for others are a second array, which begins when the first one has
    ended. More than a thousand are several arrays.

    Args:
        experiment: Written already.
        runs: None of them in the queue.
        request: What each job asks for.

    Returns:
        The arrays' numbers.

    Raises:
        UsageError: If there is no Slurm, or it refuses; what it said.
    """
    first, second = in_order(experiment, runs)
    submitted = list(_arrays(experiment, first, request, ()))
    needed = {id(each) for run in second for each in experiment.left_out(run)}
    before = sorted(
        {
            run.folder.queue["job"].partition("_")[0]
            for run in experiment.runs
            if id(run) in needed and run.folder.queue
        }
    )
    submitted += _arrays(experiment, second, request, before)
    return submitted


def _arrays(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    request: Request,
    before: Sequence[str],
) -> Iterator[str]:
    for start in range(0, len(runs), _ARRAY):
        yield _array(experiment, runs[start : start + _ARRAY], request, before)


def _array(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    request: Request,
    before: Sequence[str],
) -> str:
    out = experiment.out.absolute()
    jobs = [
        QueuedRun(out, experiment.repo, name_of(run), request.minutes) for run in runs
    ]
    ended = {}  # noted as waiting first: a job may begin before submit_array returns
    for run in runs:
        experiment.describe(run)
        if (state := run.folder.state) in ("failed", "interrupted"):
            ended[run.folder.path] = run, dict(state=state, error=run.folder.error())
            run.folder.note(state="waiting", error="")
    parameters = request.parameters()
    if before:
        parameters["dependency"] = "afterany:" + ":".join(before)
    parameters["setup"] = [_export("PYTHONPATH", experiment.repo)]
    try:
        with _as_outside_of_jobs():
            # It asks to be submitted again as often as its limit passes; whether it
            # should is for QueuedRun.checkpoint() to say.
            executor = submitit.SlurmExecutor(out / FOLDER, max_num_timeout=10**6)
            executor.update_parameters(**parameters)
            submitted = executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        for run, before_that in ended.values():
            run.folder.note(**before_that)
        raise UsageError(f"Slurm refused: {_said(str(error))}") from error
    except RuntimeError as error:  # no srun
        raise UsageError(
            f"Slurm is not on this machine ({_said(str(error))}); `commands` prints "
            "what other queues can run"
        ) from error
    for run, job in zip(runs, submitted, strict=True):
        run.folder.enqueue(job.job_id, job.paths.stderr)
    return submitted[0].job_id.partition("_")[0]


def _export(name: str, folder: Path) -> str:
    return f'export {name}={shlex.quote(str(folder))}"${{{name}:+:${name}}}"'


def _said(text: str) -> str:
    """The line of a Slurm tool's error output that matters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line]
    return (telling or lines or ["nothing"])[0]


@contextmanager
def _as_outside_of_jobs() -> Iterator[None]:
    """Without what an interactive job's shell would hand down to the new ones.

    The user's ``SBATCH_*`` and where Slurm's configuration lies stay.
    """
    inherited = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    gone = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(inherited) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(gone)


# ------------------------------------------------------------------------ within a job


def share() -> Share:
    """What Slurm gave this job; it has named the GPUs in the environment itself."""
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    names = [str(i) for i in range(gpus)]
    given = local.shares(1, names, max(gpus, 1), cpus or None)[0]
    return dataclasses.replace(given, devices=None)


class _Worker(threading.Thread):
    """Does something besides the main thread, which handles the signals.

    An exception out of a signal's handler would come anywhere in the work, and be lost
    where Python starts a process (it ignores those of its fork hooks).
    """

    def __init__(self, do: Callable[[threading.Event], object]) -> None:
        super().__init__(daemon=True)
        self.do, self.stop = do, threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.do(self.stop)
        except BaseException as error:
            self.error = error

    def wait(self) -> None:
        """Until it has ended; without a lock, for a handler may wait as well."""
        while self.is_alive():
            time.sleep(0.1)


class QueuedRun(Checkpointable):
    """What a job calls; submitit keeps it in a file.

    Args:
        out: The experiment's folder.
        repo: The repository's root.
        name: Of the run, see :func:`.single.name_of`.
        minutes: The job's time limit.
    """

    def __init__(self, out: Path, repo: Path, name: str, minutes: int) -> None:
        self.out, self.repo, self.name, self.minutes = out, repo, name, minutes
        self._folder: RunFolder | None = None
        self._worker: _Worker | None = None
        self._began, self._saved = time.time(), frozenset()

    def __call__(self) -> None:
        """Does the run.

        Raises:
            SystemExit: If the job is ended from outside.
            Exception: As :func:`.single.work` does, and if the time limit comes before
                anything was saved.
        """
        self._began = time.time()
        experiment = Experiment.open(self.out, self.repo)
        run = find(experiment, self.name)
        environment = submitit.JobEnvironment()
        run.folder.enqueue(environment.job_id, environment.paths.stderr)
        self._folder, self._saved = run.folder, _saved(run.folder)
        self._worker = _Worker(lambda stop: work(experiment, run, share(), stop=stop))
        self._work_on()

    def _work_on(self) -> None:
        worker, folder = self._worker, self._folder
        before = signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
        try:
            worker.start()
            worker.wait()
        except NotRequeued:  # out of submitit's handler of the warning
            said = (
                f"the time limit of {self.minutes} minutes came before anything was "
                "saved; ask for more with --time"
            )
            folder.note(state="failed", error=said, ended=time.time())
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        if isinstance(worker.error, Stopped):
            raise SystemExit(128 + signal.SIGTERM)
        if isinstance(worker.error, UsageError):  # before the run began
            folder.note(state="failed", error=str(worker.error), ended=time.time())
        if worker.error is not None:
            raise worker.error

    def checkpoint(self) -> DelayedSubmission | None:
        """Stops; what to submit then, or None if that would not help."""
        if self._worker is not None:
            self._worker.stop.set()
            self._worker.wait()
        # Pre-emption may come with the same signal, at any time.
        end = self._began + 60 * self.minutes - 2 * _WARNING
        late = self._folder is not None and time.time() >= end
        if late and _saved(self._folder) == self._saved:
            return None
        return DelayedSubmission(
            QueuedRun(self.out, self.repo, self.name, self.minutes)
        )


def _saved(folder: RunFolder) -> frozenset[tuple[str, int]]:
    """What a run would go on from."""
    found = set()
    for file in (*folder.path.glob("*.pth"), *folder.path.glob("results_*.json")):
        with suppress(FileNotFoundError):  # the training removes old ones
            found.add((file.name, file.stat().st_mtime_ns))
    return frozenset(found)


# ------------------------------------------------------------------------ asking Slurm


def look(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """State and reason of jobs, as far as Slurm knows them.

    Args:
        jobs: Their numbers, such as ``'12'`` and ``'13_4'``.

    Raises:
        UnreachableError: If Slurm cannot be asked.
    """
    wanted = set(jobs)
    whole = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    asked = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", "-j", whole]
    try:
        found = _table(_ask(asked))
    except UnreachableError as error:
        if "Invalid job id" not in str(error):  # said if it knows none of them
            raise
        found = {}
    if (wanted - set(found)) and shutil.which("sacct"):
        asked = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason", "-j", whole]
        try:
            found = _table(_ask(asked)) | found
        except UnreachableError:  # a cluster without accounting
            pass
    return {job: found[job] for job in wanted if job in found}


def _ask(command: Sequence[str]) -> str:
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(str(error)) from error
    if asked.returncode:
        raise UnreachableError(_said(asked.stderr))
    return asked.stdout


def _table(text: str) -> dict[str, tuple[str, str]]:
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
    # sacct: 'CANCELLED by 1000'
    return {job: (state.split()[0], reason) for job, state, reason in rows if state}


def update(experiment: Experiment) -> str:
    """Asks Slurm about the runs that it has; notes in their folders which it ended.

    Returns:
        A warning if Slurm cannot be asked, or ``''``.
    """
    jobs = {run.folder.queue.get("job"): run for run in experiment.runs}
    jobs.pop(None, None)
    if not jobs:
        return ""
    try:
        seen = look(jobs)
    except UnreachableError as error:
        return f"{len(jobs)} runs are Slurm's, which cannot be asked here ({error})"
    for job, run in jobs.items():
        state, reason = seen.get(job, ("", ""))
        if state and state not in _ENDED:
            run.folder.in_queue = InQueue(job, state in _RUNNING, _reason(reason))
        else:
            _note_end(run.folder, job, state)
    return ""


def _reason(text: str) -> str:
    return "" if text == "None" else text


def _note_end(folder: RunFolder, job: str, state: str) -> None:
    """Takes a run from the queue; notes why it ended if it could not do so itself."""
    log = Path(folder.queue.get("log", ""))
    folder.dequeue()
    noted, why = folder.noted, _ENDED.get(state, "Slurm has forgotten how it ended")
    if noted.get("state") == "finished" or folder.is_held():
        return
    if noted.get("state") in ("failed", "interrupted") and not why:
        return
    failed = noted.get("state") == "failed"
    line = noted["error"] if failed else line_that_matters(log)
    said = ": ".join(filter(None, (f"Slurm job {job}", why, line)))
    failed |= bool(state) and state not in _CAN_GO_ON
    folder.note(state="failed" if failed else "interrupted", error=said)


def available() -> bool:
    """Whether this machine can talk to Slurm."""
    return shutil.which("squeue") is not None
