"""A grid of runs: every method, target, set of modalities and seed, then a table.

``python tools/experiment.py VERB [GRID.yaml] --out FOLDER [options]``. Verbs:

plan      what would run: runs, steps, disk, time; what cannot run, and why
run       trains and tests what is not finished; call it again to go on
resume    the same, and repeats what failed
status    how far it is
commands  the runs as command lines, for any other queue

The grid is a YAML file, or flags; docs/experiments.md has its keys.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmengine.config import DictAction
from rich.console import Console

from mmaction_mbcd import cli, scripts
from mmaction_mbcd.experiments import local, status
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import EVALUATIONS, RULES, Grid
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
        "--gpus-per-job", type=int, default=1, metavar="N", help="through torchrun"
    )


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every run")
    parser.add_argument("--watch", action="store_true", help="until all have ended")


VERBS = {
    "run": _add_run,
    "resume": _add_run,
    "status": _add_status,
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
    experiment.processes = getattr(args, "gpus_per_job", 1)
    total = len(grid.specs(REPO / "configs" / "mbcd"))
    with Meter("resolving", "runs", total) as meter:
        experiment.resolve(lambda: meter.add(1))
    return experiment


def run(args: argparse.Namespace, console: Console) -> int:
    """Works on what is not finished."""
    try:
        machine = local.shares(args.jobs, args.gpus, args.gpus_per_job)
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    scripts.prepare()
    experiment = load(args)
    experiment.write()
    runs = [
        run
        for run in experiment.runs
        if not experiment.job(run).is_done()
        and (args.verb == "resume" or run.folder.state != "failed")
    ]
    console.print(status.headline(experiment))
    with status.Watch(experiment, console) as watch:
        local.run_here(experiment, runs, machine, watch.report)
    return _ended(experiment, console)


def _ended(experiment: Experiment, console: Console) -> int:
    console.print(status.headline(experiment))
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
    if args.watch and console.is_terminal:
        with status.Watch(experiment, console):
            while set(status.counts(experiment.runs)) & {"running", "waiting"}:
                time.sleep(1)
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


def _folders(count: int) -> str:
    return "1 folder of runs is" if count == 1 else f"{count} folders of runs are"


DO = {"run": run, "resume": run, "status": show}


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the verb says; 0 if all went well."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    advice = f"`run --out {args.out}` goes on from here"
    with cli.one_line_errors(lambda: advice):
        return DO[args.verb](args, console)


if __name__ == "__main__":
    sys.exit(main())
