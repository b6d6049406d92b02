"""What a grid will take, and what in it cannot run, before it is started."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmaction.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.table import Table

from .. import cli
from ..cli.data import SPLITS, innermost_datasets, quiet
from ..preparation.check import training_problems
from ..progress import duration
from .experiment import Experiment, PlannedRun
from .identity import command, data_identity
from .job import Launch, Share, ToolError, checked_settings, forked
from .run_folder import line_that_matters, read_json, write_json

MEASURED_FILE = "measured.json"


@dataclass
class Need:
    """What a run takes.

    Attributes:
        run: The run.
        steps: Optimizer steps.
        clips: Read by validations and tests.
        seconds: In all; None if no step was measured.
        bytes: Of its folder while it runs; None if not measured.
        kept: Bytes of what stays of it; None if not measured.
    """

    run: PlannedRun
    steps: int
    clips: int
    seconds: float | None = None
    bytes: int | None = None
    kept: int | None = None


@dataclass
class Plan:
    """What a grid takes.

    Attributes:
        needs: Of every run that is not done.
        done: Number of runs that are.
        problems: What cannot run, and why.
    """

    needs: list[Need]
    done: int
    problems: list[str] = field(default_factory=list)


def plan(experiment: Experiment, advance: Callable[[], object] = lambda: None) -> Plan:
    """Counts, and looks for what would stop the runs.

    Every config's model and data are built and every clip's files are looked for, once
    for each method, place and set of modalities.

    Args:
        experiment: Resolved.
        advance: Called behind each run.
    """
    found = Plan([], 0)
    looked_at: dict[str, list[str]] = {}
    for run in experiment.runs:
        if experiment.job(run).is_done():
            found.done += 1
        else:
            problems = []
            for check, part in ((_data_problems, _data), (_model_problems, _model)):
                key = json.dumps([check.__name__, part(run)], default=str)
                if key not in looked_at:
                    with quiet():
                        looked_at[key] = list(check(run.config))
                    spec = run.spec
                    where = f"{spec.dataset} {spec.name} {spec.place}"
                    found.problems += [f"{where}: {text}" for text in looked_at[key]]
                problems += looked_at[key]
            if not problems:
                found.needs.append(_need(experiment, run))
        advance()
    return found


def _model(run: PlannedRun) -> object:
    """What a model is built from; one of a search's trials stands for all."""
    if run.spec.alike != run.spec:
        return command(run.spec.alike)
    return run.config.model.to_dict()


def _data(run: PlannedRun) -> list[dict]:
    """What the data are built from."""
    return [run.config[f"{split}_dataloader"].to_dict() for split in SPLITS]


def _model_problems(cfg: Config) -> Iterator[str]:
    """Why a model cannot be built."""
    try:
        MODELS.build(cfg.model)
    except Exception as error:  # a component raises anything
        yield " ".join(str(error).split()) or type(error).__name__


def _data_problems(cfg: Config) -> Iterator[str]:
    """What of a config's data would stop a training."""
    try:
        yield from training_problems(cfg)
        for split in SPLITS:
            for settings in innermost_datasets(cfg[f"{split}_dataloader"]["dataset"]):
                DATASETS.build(dict(settings)).refuse_absence()
    except Exception as error:  # as above
        yield " ".join(str(error).split()) or type(error).__name__


def _need(experiment: Experiment, run: PlannedRun) -> Need:
    cfg, counts = run.config, data_identity(run.config)
    loader, epochs = cfg.train_dataloader, cfg.train_cfg.max_epochs
    rows = counts["train"]["N"]
    whole, rest = divmod(rows, loader.batch_size * experiment.processes)
    steps = epochs * (whole + (0 if loader.get("drop_last") else rest > 0))
    interval = cfg.train_cfg.get("val_interval", 1)
    validations = -(-epochs // interval)
    tests = len(experiment.grid.select) if run.spec.purpose == "grid" else 0
    per_test = counts["test"]["N"] * ("target" in experiment.grid.evaluate)
    per_test += counts["val"]["N"] * ("in_domain" in experiment.grid.evaluate)
    job = experiment.job(run)
    if run.folder.known and not job.must_train():  # tests alone are left
        return Need(run, 0, len(job.due()) * per_test)
    return Need(run, steps, validations * counts["val"]["N"] + tests * per_test)


# ------------------------------------------------------------------------ measuring


def measure(
    experiment: Experiment,
    needs: Sequence[Need],
    share: Share,
    steps: int = 6,
    launch: Launch = forked,
    advance: Callable[[], object] = lambda: None,
) -> list[str]:
    """Fills in seconds and bytes, from steps that are made and a checkpoint.

    One run of each method and set of modalities makes some steps and writes a
    checkpoint; what was measured once in the folder is not measured again.

    Args:
        experiment: Whose runs they are.
        needs: From :func:`plan`; changed in place.
        share: What a job will have of the machine; others should run beside it as they
            will then, since they share memory and cache.
        steps: To make; the first two do not count.
        launch: Starts a tool.
        advance: Called behind each measurement.

    Returns:
        What could not be measured, and why.
    """
    path = experiment.out / MEASURED_FILE
    known, problems = read_json(path) or {}, []
    for need in needs:
        key = _kind(need.run, share)
        if key not in known:
            try:
                known[key] = _measured(experiment, need.run, share, steps, launch)
            except ToolError as error:
                known[key] = {}
                problems.append(f"{need.run.spec.name}: {error}")
            advance()
        each = known[key]
        if each:
            need.seconds = (
                each["step"] * need.steps + each["clip"] * need.clips + each["start"]
            )
            need.bytes = each["checkpoint"] * _at_a_time(experiment, need.run)
            need.kept = each["checkpoint"] * _in_the_end(experiment, need.run)
    experiment.out.mkdir(parents=True, exist_ok=True)
    write_json(path, {key: each for key, each in known.items() if each})
    return problems


def kinds(needs: Sequence[Need], share: Share) -> int:
    """Measurements that :func:`measure` makes at most."""
    return len({_kind(need.run, share) for need in needs})


def _kind(run: PlannedRun, share: Share) -> str:
    spec = run.spec.alike
    what = [spec.dataset, spec.name, spec.modalities, spec.settings, spec.arguments]
    part = [share.threads, share.workers, share.processes, bool(share.devices)]
    return json.dumps([*what, *part])


def _measured(
    experiment: Experiment, run: PlannedRun, share: Share, steps: int, launch: Launch
) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        # As a job would: with its settings and its part of the machine.
        settings = checked_settings(run.spec, experiment.grid.select)
        settings += share.settings()
        out, log = Path(folder, "measured.json"), Path(folder, "log")
        tool = str(experiment.repo / "tools" / "experiment.py")
        line = [tool, "measure", "--out", str(out), "--steps", str(steps)]
        line += ["--", *command(run.spec, settings)]
        line += ["--work-dir", str(Path(folder, "run"))]
        process = launch(line, log, share.environment())
        while process.exitcode() is None:
            time.sleep(0.1)
        found = read_json(out)
        if found is None:
            raise ToolError(line_that_matters(log) or "no output")
        return found


def _at_a_time(experiment: Experiment, run: PlannedRun) -> int:
    """Checkpoints that lie in a run's folder at one time, at most."""
    config = run.config.default_hooks.get("checkpoint") or {}
    epochs, kept = run.config.train_cfg.max_epochs, config.get("max_keep_ckpts", -1)
    every = kept < 0 or (
        "leave_one_source_out" in experiment.grid.select and run.spec.purpose == "grid"
    )
    best = 1 + ("oracle" in experiment.grid.select)
    # One more while the next is written.
    return (epochs if every else max(kept, 2)) + best + 1


def _in_the_end(experiment: Experiment, run: PlannedRun) -> int:
    """Checkpoints that a finished run keeps."""
    if experiment.grid.keep_checkpoints == "all":
        return _at_a_time(experiment, run) - 1
    return int(
        experiment.grid.keep_checkpoints == "best" and run.spec.purpose == "grid"
    )


class _Enough(Exception):
    """Enough steps were made."""


class StepTimes(Hook):
    """Ends a phase after some steps, and knows how long they took.

    Args:
        steps: To make.
    """

    priority = "VERY_LOW"

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.times: list[float] = []

    def _note(self) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) > self.steps:
            raise _Enough

    def after_train_iter(self, *args: object, **kwargs: object) -> None:
        """Notes the time."""
        self._note()

    def after_val_iter(self, *args: object, **kwargs: object) -> None:
        """Notes the time."""
        self._note()

    def per_step(self) -> float:
        """Seconds, over the steps behind the first two."""
        times = self.times[min(2, len(self.times) - 2) :]
        return (times[-1] - times[0]) / (len(times) - 1)


def measure_steps(cfg: Config, steps: int) -> dict:
    """Makes some steps of a training and of a validation.

    Returns:
        Seconds per ``step``, per ``clip`` of an evaluation and for the ``start``, and
        bytes of a ``checkpoint``.
    """
    began = time.perf_counter()
    runner = cli.build_runner(cfg)
    training = StepTimes(steps)
    runner.register_hook(training)
    with suppress(_Enough):
        runner.train()
    start = training.times[0] - began
    runner.save_checkpoint(runner.work_dir, "measured.pth", by_epoch=False)
    size = Path(runner.work_dir, "measured.pth").stat().st_size
    found = dict(step=training.per_step(), start=start, checkpoint=size)
    return found | dict(clip=_evaluation_time(runner, training, steps))


def _evaluation_time(runner: Runner, training: StepTimes, steps: int) -> float:
    training.times.clear()
    with suppress(_Enough):
        runner.val_loop.run()
    return training.per_step() / runner.val_dataloader.batch_size


# --------------------------------------------------------------------------- shown


def table(found: Plan, jobs: int) -> Table:
    """The plan: one row for each method and set of modalities, and the sum."""
    shown = Table(title=headline(found, jobs), title_justify="left")
    for name in ("dataset", "method", "modalities"):
        shown.add_column(name)
    for name in ("runs", "steps each", "time each", "disk each"):
        shown.add_column(name, justify="right")
    groups: dict[tuple, list[Need]] = {}
    for need in found.needs:
        spec = need.run.spec
        name = spec.alike.name + (
            "" if spec.purpose == "grid" else f" ({spec.purpose})"
        )
        key = (spec.dataset, name, " ".join(spec.modalities) or "all")
        groups.setdefault(key, []).append(need)
    for key, needs in groups.items():
        steps = sorted({need.steps for need in needs})
        seconds = [n.seconds for n in needs if n.seconds is not None]
        sizes = [n.bytes for n in needs if n.bytes is not None]
        shown.add_row(
            *key,
            str(len(needs)),
            f"{steps[0]:,}" + (f" to {steps[-1]:,}" if len(steps) > 1 else ""),
            duration(sum(seconds) / len(seconds)) if seconds else "-",
            size(max(sizes)) if sizes else "-",
        )
    return shown


def headline(found: Plan, jobs: int) -> str:
    """``'12 runs to do, 3 done: 2,880 steps, about 25 min with 2 jobs at a time'``."""
    text = f"{len(found.needs)} runs to do, {found.done} done"
    text += f": {sum(need.steps for need in found.needs):,} steps"
    seconds = [need.seconds for need in found.needs]
    if seconds and None not in seconds:
        at_a_time = f"{jobs} job{'s' * (jobs > 1)} at a time"
        text += f", about {duration(sum(seconds) / jobs)} with {at_a_time}"
    if room := disk(found, jobs):
        text += f", {size(room)} of checkpoints"
    return text


def disk(found: Plan, jobs: int) -> int:
    """Bytes of checkpoints: what stays of all runs, and what lies there of some."""
    sizes = [need.bytes for need in found.needs if need.bytes is not None]
    kept = [need.kept for need in found.needs if need.kept is not None]
    return sum(kept) + jobs * max(sizes, default=0)


def disk_problem(experiment: Experiment, found: Plan, jobs: int) -> str:
    """What is wrong with the room there is, or ``''``."""
    needed = disk(found, jobs)
    folder = next(p for p in (experiment.out, *experiment.out.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return ""
    return (
        f"{experiment.out} has {size(free)} free, and the runs need about "
        f"{size(needed)}: make room, or set keep_checkpoints to none"
    )


def size(number: float) -> str:
    """``'1.2 GB'``."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
