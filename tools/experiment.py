"""A grid of runs: every method, target, set of modalities and seed, then a table.

``python tools/experiment.py VERB [GRID.yaml] --out FOLDER [options]``. Verbs:

plan      what would run: runs, steps, disk, time; what cannot run, and why
run       trains and tests what is not finished; call it again to go on
resume    the same, and repeats what failed
status    how far it is
table     means, deviations, intervals and differences: Markdown, LaTeX and CSV
report    all of it as one HTML page: tables, figures, curves, configs, failures
figures   methods side by side, for each target
search    what a search of hyper-parameters chose, and the grid that trains it
commands  the runs as command lines, for any other queue
job       does one run here: what those command lines call

The grid is a YAML file, or flags; docs/experiments.md has its keys.
"""

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

import pandas as pd
import torch
from mmengine.config import DictAction
from rich.console import Console

from mmaction_mbcd import cli, scripts
from mmaction_mbcd.analysis.figure_kinds import FigureOptions
from mmaction_mbcd.experiments import (
    grid_figures,
    local,
    planning,
    report,
    search_text,
    single,
    slurm,
    status,
    table_text,
    tables,
)
from mmaction_mbcd.experiments.experiment import (
    RUNS_FILE,
    Experiment,
    PlannedRun,
    gpus_per_job,
)
from mmaction_mbcd.experiments.grid import EVALUATIONS, RULES, Grid
from mmaction_mbcd.experiments.job import Share, ToolError
from mmaction_mbcd.experiments.run_folder import BusyError, read_json, write_json
from mmaction_mbcd.progress import Meter

REPO = Path(__file__).resolve().parent.parent


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, add in VERBS.items():
        verb = verbs.add_parser(name)
        verb.add_argument(
            "--out", type=Path, required=True, help="folder of runs and tables"
        )
        add(verb)
    return parser.parse_args(argv)


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", nargs="?", help="YAML file (default: the flags alone)")
    group = parser.add_argument_group("the grid; a flag wins over the file")
    group.add_argument("--datasets", nargs="+", metavar="NAME")
    group.add_argument("--methods", nargs="+", metavar="CONFIG")
    group.add_argument("--targets", nargs="+", metavar="DOMAIN")
    group.add_argument("--single-source", action="store_true", default=None)
    group.add_argument(
        "--modalities", nargs="+", action="append", metavar="NAME", help="repeatable"
    )
    group.add_argument("--seeds", nargs="+", type=int, metavar="N")
    group.add_argument("--data-root")
    group.add_argument("--select", nargs="+", choices=RULES)
    group.add_argument("--evaluate", nargs="+", choices=EVALUATIONS)
    group.add_argument("--keep-checkpoints", choices=["best", "all", "none"])
    group.add_argument("--reference", metavar="METHOD")
    group.add_argument(
        "--cfg-options", nargs="+", action=DictAction, dest="options", metavar="K=V"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    group = parser.add_argument_group("where it runs")
    group.add_argument("--jobs", type=int, help="at a time (default: one per GPU, or "
                       "one per two cores)")  # fmt: skip
    group.add_argument("--gpus", nargs="+", metavar="N", help="default: all")
    group.add_argument(
        "--gpus-per-job",
        type=int,
        metavar="N",
        help="through torchrun; more than one are part of what a run is; 0: on the CPU "
        "(default: as before, or 1)",
    )
    _add_slurm(parser)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Slurm", "A job per run; --jobs at a time (default: all that it lets run)."
    )
    group.add_argument("--slurm", action="store_true", help="put the runs in its queue")
    group.add_argument("--time", metavar="LIMIT", help="of a job: minutes, HH:MM:SS or "
                       "DAYS-HH; it is requeued when that is near")  # fmt: skip
    group.add_argument("--partition", metavar="NAME")
    group.add_argument("--account", metavar="NAME")
    group.add_argument("--qos", metavar="NAME")
    group.add_argument("--cpus", type=int, metavar="N", help="of a job (default: 4 per "
                       "GPU, or 2)")  # fmt: skip
    group.add_argument("--memory", metavar="SIZE", help="of a job, such as 32G")
    group.add_argument(
        "--sbatch", nargs="+", default=[], metavar="KEY[=VALUE]", help="more options"
    )


def _add_commands(parser: argparse.ArgumentParser) -> None:
    _add_grid(parser)
    _add_job_share(parser)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="as `commands` prints it")
    _add_job_share(parser)


def _add_job_share(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what a job may use")
    group.add_argument("--cpus", type=int, metavar="N", help="default: all it may")
    group.add_argument(
        "--gpus-per-job",
        type=int,
        metavar="N",
        help="through torchrun (default: as planned)",
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every run")
    parser.add_argument("--watch", action="store_true", help="until all have ended")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--no-measure", action="store_true", help="do not measure steps for the time"
    )


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("train", nargs="+", help="arguments of tools/train.py")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", choices=RULES, help="default: each of the grid's")
    parser.add_argument("--evaluation", choices=EVALUATIONS, help="default: each")
    parser.add_argument(
        "--head", default="", help="a modality, student or teacher (default: fused)"
    )
    parser.add_argument("--reference", metavar="METHOD", help="default: the grid's")
    _add_methods(parser)
    parser.add_argument(
        "--name", help="of the files (default: the methods chosen, if any)"
    )


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="these alone (default: all)"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", action="store_true", help="show every trial")
    parser.add_argument(
        "--show-target",
        action="store_true",
        help="also the trials' accuracy on the target, which chooses nothing",
    )


def _add_figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=grid_figures.ALL_KINDS,
        default=list(grid_figures.FROM_RECORDS),
        help="default: those that need no checkpoint",
    )
    _add_methods(parser)
    parser.add_argument("--seed", type=int, help="whose runs (default: the first)")
    parser.add_argument(
        "--rule", choices=RULES, help="whose epochs (default: the grid's first)"
    )
    parser.add_argument("--clips", type=int, help="of measured kinds, a choice of N")
    parser.add_argument("--data-root", help="where the data lie now")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", metavar="METHOD", help="default: the grid's")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="default: report.html in the folder"
    )


VERBS = {
    "plan": _add_plan,
    "run": _add_run,
    "resume": _add_run,
    "status": _add_status,
    "commands": _add_commands,
    "job": _add_job,
    "table": _add_table,
    "search": _add_search,
    "report": _add_report,
    "figures": _add_figures,
    "measure": _add_measure,
}


def load(args: argparse.Namespace) -> Experiment:
    """The experiment of a grid, or the one that lies in the folder."""
    flags = {
        name: getattr(args, name)
        for name in (
            "datasets", "methods", "targets", "single_source", "modalities", "seeds",
            "data_root", "select", "evaluate", "keep_checkpoints", "reference",
            "options",
        )
        if getattr(args, name) is not None
    }  # fmt: skip
    if args.grid is not None:
        grid = Grid.read(args.grid, **flags)
    elif flags:
        grid = Grid.of(flags)
    else:
        grid = Experiment.open(args.out, REPO).grid
    experiment = Experiment(grid, args.out, REPO)
    experiment.gpus_per_job = args.gpus_per_job
    total = len(grid.specs(REPO / "configs" / "mbcd"))
    with Meter("resolving", "runs", total) as meter:
        experiment.resolve(lambda: meter.add(1))
    return experiment


def _as_before(args: argparse.Namespace) -> None:
    """Without a word about them, runs have as many GPUs as those in the folder."""
    if args.gpus_per_job is None:
        args.gpus_per_job = gpus_per_job(read_json(args.out / RUNS_FILE) or {})


def plan(args: argparse.Namespace, console: Console) -> int:
    """Says what would run and what cannot."""
    _as_before(args)
    request = _request(args)
    share, jobs = _planned_share(args, request)
    scripts.prepare()
    experiment = load(args)
    experiment.write()
    with Meter("looking at configs and data", "runs", len(experiment.runs)) as meter:
        found = planning.plan(experiment, lambda: meter.add(1))
    jobs = jobs or max(1, len(found.needs))
    if share is None:
        console.print(
            "steps are not measured: this machine has not the GPUs that a job has; "
            "`plan` says the time where it has them"
        )
    elif found.needs and not args.no_measure:
        total = planning.kinds(found.needs, share)
        with Meter("measuring steps", "methods", total) as meter:
            found.problems += planning.measure(
                experiment, found.needs, share, advance=lambda: meter.add(1)
            )
    console.print(planning.table(found, jobs))
    if request is not None and share is not None and not args.no_measure:
        console.print("The time is for jobs on machines such as this one.")
    if problem := planning.disk_problem(experiment, found, jobs):
        found.problems.append(problem)
    for problem in dict.fromkeys(found.problems):
        console.print(f"cannot run: {problem}", style="red", highlight=False)
    return 1 if found.problems else 0


def _planned_share(
    args: argparse.Namespace, request: slurm.Request | None
) -> tuple[Share | None, int | None]:
    """What of this machine a job would have, and how many run at a time.

    None of it where Slurm's jobs have GPUs that are not here; None at a time is all.
    """
    if request is None:
        machine = _machine(args)
        return machine[0], len(machine)
    elsewhere = any(key.startswith(("gres", "gpus")) for key in request.more)
    if elsewhere or request.gpus > torch.cuda.device_count():
        return None, request.at_a_time
    share = local.shares(1, None, request.gpus, request.cores)[0]
    return share, request.at_a_time


def measure(args: argparse.Namespace, console: Console) -> int:
    """Makes some steps, for plan."""
    train = importlib.import_module("train")  # it lies beside this file
    cfg = train.build_config(train.parse_args(args.train))
    write_json(args.out, planning.measure_steps(cfg, args.steps))
    return 0


def _refuse_search(args: argparse.Namespace, experiment: Experiment) -> None:
    if experiment.grid.search is not None:
        raise cli.UsageError(
            f"{args.out} is a search, whose trials are no result: `search` shows what "
            "they chose and writes the grid that trains it"
        )


def table(args: argparse.Namespace, console: Console) -> int:
    """Writes the tables and shows the first."""
    experiment = Experiment.open(args.out, REPO).only(args.methods)
    grid = experiment.grid
    _refuse_search(args, experiment)
    rules = [args.rule] if args.rule else grid.select
    evaluations = [args.evaluation] if args.evaluation else grid.evaluate
    reference = args.reference or grid.reference
    made, problems = 0, []
    for evaluation, rule in itertools.product(evaluations, rules):
        try:
            records = tables.read_records(experiment, rule, evaluation, args.head)
            frame = _summary(records, reference, bool(args.reference), console)
        except (cli.UsageError, ValueError) as error:
            problems.append(f"no table of {evaluation} by {rule}: {error}")
            continue
        made += 1
        for written in tables_files(args, records, frame):
            console.print(f"table: {written}", highlight=False, soft_wrap=True)
        if made == 1:
            _show_table(records, frame, console)
    if not made:
        raise cli.UsageError(problems[0])
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    return 0


def _summary(
    records: tables.Records, reference: str | None, asked: bool, console: Console
) -> pd.DataFrame:
    """The numbers; a reference of the grid that has not run yet compares with none."""
    try:
        return tables.summarise(records, reference)
    except cli.UsageError as error:
        if asked:
            raise
        console.print(f"no differences: {error}", markup=False)
        return tables.summarise(records)


def search(args: argparse.Namespace, console: Console) -> int:
    """Shows the trials of a search and writes what follows from them."""
    experiment = Experiment.open(args.out, REPO)
    found = search_text.Found.read(experiment, args.show_target)
    for each in found.shown(args.trials):
        console.print(each)
    for written in found.write(args.out / "search"):
        console.print(f"written: {written}", highlight=False, soft_wrap=True)
    for note in found.notes():
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return 0


def tables_files(args, records, frame) -> Iterator[Path]:
    """Writes a table as Markdown, LaTeX and CSV."""
    of = args.name or "+".join(args.methods or ())
    name = "_".join(filter(None, (of, records.evaluation, records.rule, args.head)))
    folder = args.out / "tables"
    folder.mkdir(exist_ok=True)
    notes = [*records.notes, *(f"Missing: {each}." for each in records.missing)]
    for suffix, text in (
        (".md", table_text.markdown(frame, notes)),
        (".tex", table_text.latex(frame, notes)),
        (".csv", frame.assign(notes=" ".join(notes)).to_csv(index=False)),
    ):
        path = folder / f"{name.replace('/', '-')}{suffix}"
        path.write_text(text, encoding="utf-8")
        yield path


def _show_table(records, frame, console: Console) -> None:
    for each in table_text.terminal(frame):
        console.print(each)
    for note in records.notes:
        console.print(f"   {note}")
    if records.missing:
        console.print(
            f"   {len(records.missing)} runs are missing, such as {records.missing[0]}"
        )


def figures(args: argparse.Namespace, console: Console) -> int:
    """Draws the methods of each target side by side."""
    experiment = Experiment.open(args.out, REPO).only(args.methods)
    _refuse_search(args, experiment)
    options = FigureOptions(args.out, data_root=args.data_root, clips=args.clips)
    made = 0
    for each in grid_figures.draw(
        experiment, args.kinds, args.seed, args.rule, options
    ):
        made += isinstance(each, Path)
        text = f"figure: {each}" if isinstance(each, Path) else each
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0 if made else 1


def write_report(args: argparse.Namespace, console: Console) -> int:
    """Writes the page."""
    experiment = Experiment.open(args.out, REPO)
    _refuse_search(args, experiment)
    path = args.page or args.out / "report.html"
    total = len(experiment.grid.select) * len(experiment.grid.evaluate)
    with Meter("reading", "tables", total) as meter:
        data = report.gather(experiment, args.reference, lambda: meter.add(1))
    path.write_text(report.render(data), encoding="utf-8")
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return 0


def _machine(args: argparse.Namespace) -> list[Share]:
    try:
        return local.shares(args.jobs, args.gpus, args.gpus_per_job)
    except ValueError as error:
        raise cli.UsageError(str(error)) from error


def run(args: argparse.Namespace, console: Console) -> int:
    """Works on what is not finished."""
    _as_before(args)
    request = _request(args)
    if request is None:
        machine = _machine(args)
        scripts.prepare()
    experiment = load(args)
    experiment.write()
    _ask_slurm(experiment, console, strict=True)
    runs = [
        run
        for run in experiment.runs
        if not experiment.job(run).is_done()
        and (args.verb == "resume" or run.folder.state != "failed")
        and not run.folder.in_queue
    ]
    if request is not None:
        return _submit(experiment, runs, request, console)
    console.print(status.headline(experiment.runs))
    with status.Watch(experiment, console) as watch:
        local.run_here(experiment, runs, machine, watch.report)
    return _ended(experiment, console)


def _request(args: argparse.Namespace) -> slurm.Request | None:
    """What Slurm is asked for; None if the runs are for this machine."""
    names = ("time", "partition", "account", "qos", "cpus", "memory", "sbatch")
    if not args.slurm:
        if given := [f"--{name}" for name in names if getattr(args, name)]:
            raise cli.UsageError(f"{', '.join(given)}: for Slurm; add --slurm")
        return None
    if args.gpus:
        raise cli.UsageError("--gpus: Slurm chooses; say --gpus-per-job")
    if not args.time:
        raise cli.UsageError("--slurm needs a --time limit for each job")
    try:
        limit = slurm.minutes(args.time)
    except ValueError as error:
        raise cli.UsageError(f"--time: {error}") from error
    more = [each.lstrip("-").partition("=") for each in args.sbatch]
    return slurm.Request(
        limit, args.partition, args.account, args.qos, args.gpus_per_job, args.cpus,
        args.memory, args.jobs, {key: value or not sign for key, sign, value in more},
    )  # fmt: skip


def _ask_slurm(experiment: Experiment, console: Console, strict: bool = False) -> None:
    """Brings what Slurm has of the runs up to date.

    Raises:
        UsageError: If it does not answer where it should, and ``strict``.
    """
    if warning := slurm.update(experiment):
        if strict and slurm.available():  # else the folder may be a copy
            raise cli.UsageError(f"{warning}; they might be submitted twice")
        console.print(f"{warning}: states may be old", highlight=False)


def _submit(
    experiment: Experiment,
    runs: Sequence[PlannedRun],
    request: slurm.Request,
    console: Console,
) -> int:
    runs = [run for run in runs if run.folder.state != "running"]
    arrays = slurm.submit(experiment, runs, request)
    slurm.update(experiment)
    text = f"{len(runs)} runs submitted"
    text += f", Slurm jobs {', '.join(arrays)}" if arrays else ""
    console.print(text, highlight=False)
    console.print(status.headline(experiment.runs))
    console.print(f"`status --out {experiment.out}` shows how far they are.")
    return 0


def _ended(experiment: Experiment, console: Console) -> int:
    console.print(status.headline(experiment.runs))
    found = status.counts(experiment.runs)
    if found["failed"]:
        console.print(status.table(experiment))
        console.print("`resume` repeats what failed.")
    elif found["interrupted"]:  # it could not even write that it failed
        console.print("`run` goes on with what was interrupted.")
    return 1 if found["failed"] or found["interrupted"] else 0


def show(args: argparse.Namespace, console: Console) -> int:
    """Shows how far it is."""
    experiment = Experiment.open(args.out, REPO)
    _ask_slurm(experiment, console)
    if args.watch and console.is_terminal:
        with status.Watch(experiment, console):
            for second in itertools.count(1):
                found = set(status.counts(experiment.runs))
                if not found & {"running", "waiting", "queued"}:
                    break
                time.sleep(1)
                if second % 20 == 0:  # Slurm serves many
                    slurm.update(experiment)
    console.print(status.table(experiment, args.all))
    strangers = list(experiment.strangers())
    if strangers:
        console.print(
            f"{_folders(len(strangers))} not of this grid, such as {strangers[0]}: an "
            "earlier config's, which no table has.",
            markup=False,
            highlight=False,
        )
    return 0


def commands(args: argparse.Namespace, console: Console) -> int:
    """Prints what is not finished as command lines, one each, on stdout."""
    _as_before(args)
    experiment = load(args)
    experiment.write()
    runs = [run for run in experiment.runs if not experiment.job(run).is_done()]
    first, second = single.in_order(experiment, runs)
    options = ["--gpus-per-job", str(args.gpus_per_job)]
    options += ["--cpus", str(args.cpus)] if args.cpus else []
    for run in [*first, *second]:
        experiment.describe(run)
        print(single.command_line(experiment, run, options))
    if first and second:
        print(
            f"Lines {len(first) + 1} to {len(runs)} wait for those before them, which "
            "choose their epochs: let these end first.",
            file=sys.stderr,
        )
    return 0


def job(args: argparse.Namespace, console: Console) -> int:
    """Does one run, in the foreground."""
    experiment = Experiment.open(args.out, REPO)
    run = single.find(experiment, args.name)
    _as_before(args)
    try:
        share = local.shares(1, None, args.gpus_per_job, args.cpus)[0]
        single.work(experiment, run, share)
    except (ValueError, ToolError, BusyError) as error:
        raise cli.UsageError(str(error)) from error
    console.print(f"{run.folder.path}: {run.folder.state}", highlight=False)
    return 0


def _folders(count: int) -> str:
    return "1 folder of runs is" if count == 1 else f"{count} folders of runs are"


DO = {
    "plan": plan,
    "run": run,
    "resume": run,
    "status": show,
    "table": table,
    "search": search,
    "report": write_report,
    "figures": figures,
    "measure": measure,
    "commands": commands,
    "job": job,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the verb says; 0 if all went well."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    advice = f"`run --out {args.out}` goes on from here"
    with cli.one_line_errors(lambda: advice):
        return DO[args.verb](args, console)


if __name__ == "__main__":
    sys.exit(main())
