"""One run from beginning to end: train, choose checkpoints, test, tidy up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd

from .. import scripts
from ..analysis import run_folders
from ..analysis.curves import read_curves
from ..engine.run_report import PROGRESS_FILE
from ..evaluation.predictions import Predictions
from ..processes import end_unless_alive, end_with_parent
from .grid import RunSpec
from .identity import command
from .run_folder import RunFolder, line_that_matters, write_json

_LOOK = 0.3  # s between two looks at a process
_GRACE = 30.0  # s that a process gets to end; one that hangs is killed then
# s in which a signal that ended a tool should reach this process too, if it is for all.
_SAME_SIGNAL = 1.0


class ToolError(RuntimeError):
    """A tool ended with an error; the message is the line that says why."""


class Stopped(Exception):
    """A run was told to stop; it can be continued."""


class RunningTool(Protocol):
    """A process of one of the tools."""

    def exitcode(self) -> int | None:
        """None while it runs."""

    def terminate(self) -> None:
        """Asks it to end, as a batch system does; it says what it saved."""


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], RunningTool]
"""Starts a command line, with a file for its output and changes of the environment."""


@dataclass(frozen=True)
class Share:
    """What one job gets of a machine.

    Attributes:
        threads: OpenMP threads of each of its processes; the environment's if None.
        workers: Data workers of each loader; the config's if None.
        devices: GPUs, as ``CUDA_VISIBLE_DEVICES`` names them; the environment's if
            None.
        processes: Processes that train together, one per GPU.
    """

    threads: int | None = None
    workers: int | None = None
    devices: tuple[str, ...] | None = None
    processes: int = 1

    def environment(self) -> dict[str, str]:
        """Changes of the environment."""
        changes = {}
        if self.threads is not None:
            changes["OMP_NUM_THREADS"] = str(self.threads)
        if self.devices is not None:
            changes["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        return changes

    def settings(self) -> list[str]:
        """Of the data loaders, as ``key=value``."""
        if self.workers is None:
            return []
        return [
            f"{split}_dataloader.{key}={value}"
            for split in ("train", "val", "test")
            for key, value in (
                ("num_workers", self.workers),
                ("persistent_workers", self.workers > 0),
            )
        ]


def checked_settings(spec: RunSpec, select: Sequence[str]) -> list[str]:
    """What the rules of selection need of a training, as ``key=value``."""
    watched = "oracle" in select or spec.purpose == "leave_one_source_out"
    settings = ["val_dataloader.dataset.watch_target=True"] if watched else []
    if "oracle" in select and spec.purpose == "grid":
        settings.append("default_hooks.checkpoint.save_best=[source/top1,target/top1]")
    if "leave_one_source_out" in select and spec.purpose == "grid":
        settings.append("default_hooks.checkpoint.max_keep_ckpts=-1")
    return settings


@dataclass
class Job:
    """What :meth:`run` does.

    Attributes:
        folder: The run's.
        repo: Where ``tools`` lies.
        select: Rules, see :data:`.grid.RULES`.
        evaluate: See :data:`.grid.EVALUATIONS`.
        keep_checkpoints: See :class:`.Grid`.
        left_out: Folders of the runs that choose this one's epoch.
        share: Its part of the machine.
        record: Called first, when no other process can be at work in the folder;
            writes what the run is, if nothing else has.
    """

    folder: RunFolder
    repo: Path
    select: Sequence[str] = ("source",)
    evaluate: Sequence[str] = ("target",)
    keep_checkpoints: str = "best"
    left_out: Sequence[RunFolder] = ()
    share: Share = field(default_factory=Share)
    record: Callable[[], object] = lambda: None

    def run(self, launch: Launch, stop: threading.Event | None = None) -> None:
        """Does what is not done yet, and notes how far it is.

        Args:
            launch: Starts a tool.
            stop: Set from outside to stop; the run can be continued.

        Raises:
            ToolError: If a tool fails; the folder says so too.
            BusyError: If another process works on the run.
            Stopped: If it was stopped.
        """
        stop = stop or threading.Event()
        with self.folder.held():
            try:
                self.record()
                attempts = self.folder.noted.get("attempts", 0) + 1
                begun = dict(attempts=attempts, started=time.time(), error="")
                self.folder.note(state="running", **begun)
                self._steps(launch, stop)
                self.folder.note(state="finished", phase="", ended=time.time())
            except Stopped:
                self.folder.note(state="interrupted")
                raise
            except Exception as error:
                known = isinstance(error, ToolError)
                said = str(error) if known else f"{type(error).__name__}: {error}"
                with suppress(OSError):  # of a full disk
                    self.folder.note(state="failed", error=said, ended=time.time())
                raise

    def _steps(self, launch: Launch, stop: threading.Event) -> None:
        if self.must_train():
            self._begin_training()
            self._tool("train", self.train_command(), launch, stop)
            self.folder.note(trained=True)
        for rule in filter(self._can_test, self.due()):
            for evaluation in self.evaluate:
                self._test(rule, self.epoch_of(rule), evaluation, launch, stop)
        waiting = [rule for rule in self.due() if self._waits(rule)]
        unavailable = [rule for rule in self.due() if rule not in waiting]
        self.folder.note(unavailable=unavailable)
        if not waiting:
            self._tidy_up()

    def must_train(self) -> bool:
        """Whether what is left to do needs a training, or its end."""
        noted = self.folder.noted
        if self.folder.spec.purpose != "grid":
            return not noted.get("trained")
        if not noted.get("trained"):
            return bool(self.due())
        # A rule that is asked for later may need a checkpoint that was not kept;
        # training again gives the same one, to the bit.
        tried = noted.get("unavailable", ())
        due = [r for r in self.due() if r not in tried and not self._waits(r)]
        return not all(map(self._can_test, due))

    def _begin_training(self) -> None:
        """Anew, if checkpoints are wanted that a training so far has not kept."""
        noted = self.folder.noted
        wanted = {"oracle", "leave_one_source_out"} & set(self.due())
        begun_for = noted.get("rules", self.select)
        if noted.get("trained") or not wanted <= set(begun_for):
            self._remove_checkpoints()
            begun_for, noted["seconds"] = self.select, {}
        rules = [rule for rule in self.select if rule in begun_for]
        self.folder.note(trained=False, rules=rules, seconds=noted.get("seconds", {}))

    def due(self) -> list[str]:
        """The rules whose results are not all there."""
        if self.folder.spec.purpose != "grid":
            return []
        return [
            rule
            for rule in self.select
            if rule != "leave_one_source_out" or self.left_out
            if any(not self._has(rule, evaluation) for evaluation in self.evaluate)
        ]

    def _waits(self, rule: str) -> bool:
        """Whether runs that choose its epoch are still to come."""
        return rule == "leave_one_source_out" and any(
            folder.state != "finished" for folder in self.left_out
        )

    def _has(self, rule: str, evaluation: str) -> bool:
        predictions = self.folder.predictions_file(rule, evaluation)
        return bool(self.folder.results(rule, evaluation)) and predictions.is_file()

    def _can_test(self, rule: str) -> bool:
        epoch = self.epoch_of(rule)
        return epoch is not None and self.checkpoint_of(epoch) is not None

    def is_done(self) -> bool:
        """Whether nothing is left to do, as far as it can be done."""
        if self.folder.state != "finished" or not self.folder.known:
            return False
        unavailable = self.folder.noted.get("unavailable", ())
        return all(rule in unavailable for rule in self.due())

    # ------------------------------------------------------------------- commands

    def settings(self) -> list[str]:
        """``key=value`` beside the run's own."""
        return [
            *checked_settings(self.folder.spec, self.select),
            *self.share.settings(),
        ]

    def train_command(self) -> list[str]:
        """Of ``tools/train.py``."""
        spec = self.folder.spec
        config, *options = command(spec, self.settings())
        own = ["--seed", str(spec.seed), "--resume", "--work-dir"]
        return [*self._launcher("train"), config, *self._processes(), *options, *own,
                str(self.folder.path)]  # fmt: skip

    def test_command(
        self, checkpoint: Path, rule: str, evaluation: str = "target"
    ) -> list[str]:
        """Of ``tools/test.py``."""
        config, *options = command(self.folder.spec, self.settings())
        own = ["--work-dir", str(self.folder.path)]
        own += ["--out", str(self.folder.results_file(rule, evaluation))]
        own += ["--predictions", str(self.folder.predictions_file(rule, evaluation))]
        own += ["--in-domain"] if evaluation == "in_domain" else []
        place = [config, str(checkpoint), *self._processes()]
        return [*self._launcher("test"), *place, *options, *own]

    def _launcher(self, tool: str) -> list[str]:
        name = f"dist_{tool}.sh" if self.share.processes > 1 else f"{tool}.py"
        return [str(self.repo / "tools" / name)]

    def _processes(self) -> list[str]:
        return [str(self.share.processes)] if self.share.processes > 1 else []

    def _tool(
        self,
        phase: str,
        line: Sequence[str],
        launch: Launch,
        stop: threading.Event,
    ) -> None:
        log, began = self.folder.path / f"{phase}.log", time.monotonic()
        self.folder.note(phase=phase)
        if stop.is_set():
            raise Stopped
        (self.folder.path / PROGRESS_FILE).unlink(missing_ok=True)
        start = log.stat().st_size if log.exists() else 0
        tool = launch(line, log, self.share.environment())
        try:
            while (code := tool.exitcode()) is None:
                if stop.wait(_LOOK):
                    raise Stopped
        except BaseException:
            tool.terminate()
            raise
        finally:
            seconds = self.folder.noted.get("seconds", {})
            passed = seconds.get(phase, 0) + time.monotonic() - began
            with suppress(OSError):  # of a full disk
                self.folder.note(seconds=seconds | {phase: round(passed, 1)})
        if code:
            if stop.wait(_SAME_SIGNAL):
                raise Stopped
            said = line_that_matters(log, start) or "no output"
            raise ToolError(f"{phase}: {said} ({_how_it_ended(code)}; {log})")

    # ------------------------------------------------------------------ selection

    def epoch_of(self, rule: str) -> int | None:
        """The epoch that a rule chooses; None if its checkpoint is not there."""
        if rule == "last":
            epochs = [int(p.stem[6:]) for p in self.folder.path.glob("epoch_*.pth")]
            return max(epochs, default=None)
        if rule == "leave_one_source_out":
            if self._waits(rule):
                return None
            return best_left_out_epoch([f.path for f in self.left_out])
        role = {"source": "source", "oracle": "target"}[rule]
        best = run_folders.best_checkpoint(self.folder.path, role)
        return None if best is None else run_folders.epoch_of(best)

    def checkpoint_of(self, epoch: int) -> Path | None:
        """Where the weights of a chosen epoch are; None if they are gone."""
        heads = ("best_source_top1_", "best_target_top1_", "")
        paths = [self.folder.path / f"{head}epoch_{epoch}.pth" for head in heads]
        return next((path for path in paths if path.is_file()), None)

    def _test(
        self,
        rule: str,
        epoch: int,
        evaluation: str,
        launch: Launch,
        stop: threading.Event,
    ) -> None:
        if self._has(rule, evaluation):
            return
        results = self.folder.results_file(rule, evaluation)
        predictions = self.folder.predictions_file(rule, evaluation)
        for other in self.select:  # of the same weights the same is said
            if self.folder.results(other, evaluation).get("epoch") == epoch:
                same = self.folder.predictions_file(other, evaluation)
                if other != rule and same.is_file():
                    Predictions.load(same).save(predictions)
                    write_json(results, self.folder.results(other, evaluation))
                    return
        checkpoint = self.checkpoint_of(epoch)
        name = "test_" + results.stem.removeprefix("results_")
        self._tool(name, self.test_command(checkpoint, rule, evaluation), launch, stop)

    def _tidy_up(self) -> None:
        """Removes what a finished run needs no more."""
        if self.keep_checkpoints == "all":
            return
        kept = None
        if self.keep_checkpoints == "best" and self.folder.spec.purpose == "grid":
            epochs = filter(None, map(self.epoch_of, self.select))
            kept = next(filter(None, map(self.checkpoint_of, epochs)), None)
        self._remove_checkpoints(kept)

    def _remove_checkpoints(self, kept: Path | None = None) -> None:
        (self.folder.path / "last_checkpoint").unlink(missing_ok=True)
        for path in self.folder.path.glob("*.pth"):
            if path != kept:
                path.unlink()


def _how_it_ended(code: int) -> str:
    """``'exit code 2'``, or the signal."""
    if code >= 0:
        return f"exit code {code}"
    reason = "; was there too little memory?" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{reason}"


def best_left_out_epoch(runs: Sequence[Path]) -> int | None:
    """The epoch whose accuracy on the left-out sources, on average, is best.

    The later of equal ones, as with a run's own validation
    (:class:`.ResumableCheckpointHook`).

    Args:
        runs: Folders of runs, each with another source left out; None if there are
            none, or one has not been validated.
    """
    try:
        curves = [read_curves(run)["target/top1"] for run in runs]
    except (FileNotFoundError, KeyError):
        return None
    if not curves:
        return None
    # Sums of the same numbers in another order differ in their last digit.
    means = pd.concat(curves, axis=1).dropna().mean(axis=1).round(12)
    return int(means[means == means.max()].index[-1]) if len(means) else None


# ---------------------------------------------------------------------------- launching


def _ends(tool: RunningTool) -> bool:
    """Whether it does so in time."""
    end = time.monotonic() + _GRACE
    while tool.exitcode() is None and time.monotonic() < end:
        time.sleep(0.05)
    return tool.exitcode() is not None


class _Forked:
    def __init__(self, process) -> None:
        self._process = process

    def exitcode(self) -> int | None:
        return scripts.exit_code(self._process)

    def terminate(self) -> None:
        if self.exitcode() is None:
            self._process.terminate()
        if not _ends(self):
            self._process.kill()
            _ends(self)


def forked(line: Sequence[str], log: Path, changes: Mapping[str, str]) -> RunningTool:
    """In a process that has done the imports already; for Python scripts.

    MMEngine looks for GPUs as it is imported: a tool that is to see none imports it
    anew.
    """
    if not line[0].endswith(".py") or changes.get("CUDA_VISIBLE_DEVICES") == "":
        return spawned(line, log, changes)
    threads = changes.get("OMP_NUM_THREADS")
    process = scripts.start_script(
        line[0], line[1:], log, env=changes, threads=int(threads) if threads else None
    )
    return _Forked(process)


class _Spawned:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def exitcode(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        if not _ends(self):
            self._process.kill()
            self._process.wait()


def spawned(line: Sequence[str], log: Path, changes: Mapping[str, str]) -> RunningTool:
    """In a new process."""
    whole = [sys.executable, *line] if line[0].endswith(".py") else list(line)
    environment = {**os.environ, "PYTHON": sys.executable, **changes}
    parent = os.getpid()

    def end_with_us() -> None:
        # A batch system's warning reaches every process of a job; whoever started the
        # tool decides about it.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent()
        end_unless_alive(parent)

    with open(log, "ab") as output:
        process = subprocess.Popen(
            whole,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=end_with_us,
        )
    return _Spawned(process)
