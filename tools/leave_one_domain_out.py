"""Every domain as the unseen one, in turn: trains, selects, tests, tabulates.

``python tools/leave_one_domain_out.py CONFIG [CONFIG ...] [options]``. Options that it
does not know are handed to tools/train.py and tools/test.py alike. Run it again to
continue: what is finished is kept, what was interrupted is resumed. Several configs are
run one after the other and end in one table.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from rich.console import Console

from mmaction_mbcd import cli
from mmaction_mbcd.experiments.leave_one_out import (
    Benchmark,
    compare,
    print_comparison,
    print_summary,
    run_benchmark,
    summarise,
)
from mmaction_mbcd.experiments.running import RULE, RunError
from mmaction_mbcd.preparation.check import training_problems


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; unknown options are the tools'."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s CONFIG [CONFIG ...] [options] [options of train and test]",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config file")
    parser.add_argument("--data-root", help="folder of the dataset")
    parser.add_argument(
        "--domains",
        nargs="+",
        metavar="DOMAIN",
        default=[],
        help="only these targets (with --single-source: sources); default: all",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--single-source",
        action="store_true",
        help="train on one domain and test on each other one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="default: work_dirs/<dataset>/<config>_benchmark; with several configs "
        "each one gets a folder in it",
    )
    parser.add_argument(
        "--keep-checkpoints",
        choices=["best", "all"],
        default="best",
        help="what stays of a finished run: the checkpoint that was tested (default), "
        "or the latest one as well",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    args, args.rest = parser.parse_known_args(argv)
    return args


def build_benchmark(args: argparse.Namespace, config: str) -> Benchmark:
    """The benchmark of a config; the dataset is asked for its domains."""
    options = list(args.rest)
    if args.data_root:
        options = ["--data-root", args.data_root, *options]
    for name in ("--target", "--sources", "--seed", "--work-dir"):
        if name in options:
            raise cli.UsageError(f"{name} is set by this tool for each run")
    out = args.out
    if out is not None and len(args.configs) > 1:
        out /= Path(config).stem
    if out is None:
        name = Path(config).stem
        if "--modalities" in options:
            rest = options[options.index("--modalities") + 1 :]
            end = next((i for i, x in enumerate(rest) if x.startswith("-")), len(rest))
            name += "_" + "-".join(rest[:end])
        name += "_single_source" if args.single_source else ""
        out = Path("work_dirs", cli.config_folder(config), f"{name}_benchmark")
    return Benchmark(
        repo=Path(__file__).resolve().parent.parent,
        config=Path(config),
        domains=cli.domains_of(config, args.data_root),
        out=out,
        chosen=args.domains,
        seeds=args.seeds,
        single_source=args.single_source,
        options=options,
        keep_all=args.keep_checkpoints == "all",
    )


def _check_training(args: argparse.Namespace, benchmark: Benchmark) -> None:
    """Refuses now what would stop a training later."""
    parser = argparse.ArgumentParser(add_help=False)
    cli.add_data_options(parser)
    options, _ = parser.parse_known_args(benchmark.options)
    options.config, options.target = str(benchmark.config), benchmark.domains[:1]
    cfg = cli.load_config(options)
    # Every target but for one source, whose batches its own training looks at.
    if problems := training_problems(cfg, every_target=not args.single_source):
        raise cli.UsageError("; ".join(problems))


def _plan(args: argparse.Namespace) -> list[Benchmark]:
    """Every config's benchmark, checked before any of them starts."""
    benchmarks = [build_benchmark(args, config) for config in args.configs]
    folders = [benchmark.out for benchmark in benchmarks]
    if twice := {str(folder) for folder in folders if folders.count(folder) > 1}:
        raise cli.UsageError(
            f"several configs would write to {', '.join(twice)}: run them one by one, "
            "each with an --out of its own"
        )
    for benchmark in benchmarks:
        try:
            benchmark.runs()
        except ValueError as error:
            raise cli.UsageError(str(error)) from error
        if not args.dry_run:
            _check_training(args, benchmark)
    return benchmarks


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark of every config."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 100)
    with cli.one_line_errors(lambda: "the same command goes on from here"):
        return _run(args, console)


def _run(args: argparse.Namespace, console: Console) -> int:
    benchmarks = _plan(args)
    summaries = {}
    for benchmark in benchmarks:
        if len(benchmarks) > 1:
            console.print(f"[bold]{benchmark.config}[/bold]")
        if args.dry_run:
            _print_runs(benchmark, console)
            continue
        try:
            table = run_benchmark(benchmark, console)
        except (RunError, ValueError) as error:
            print(f"leave_one_domain_out.py: error: {error}", file=sys.stderr)
            return 1
        print_summary(benchmark, table, console)
        console.print(f"   table: {benchmark.out / 'results.csv'}")
        summaries[str(benchmark.config)] = summarise(table)
    if len(summaries) > 1:
        seeds = ", ".join(map(str, args.seeds))
        title = f"Top-1 % on unseen domains: seeds {seeds}, epoch by {RULE}"
        table = compare(_short_names(summaries))
        print_comparison(table, title, console)
        if args.out is not None:
            table.to_csv(args.out / "comparison.csv", index=False)
            console.print(f"   table: {args.out / 'comparison.csv'}")
    return 0


def _short_names(summaries: dict) -> dict:
    """By the configs' names without their folders, where that tells them apart."""
    names = [Path(config).stem for config in summaries]
    if len(set(names)) < len(names):
        return summaries
    return dict(zip(names, summaries.values(), strict=True))


def _print_runs(benchmark: Benchmark, console: Console) -> None:
    runs = benchmark.runs()
    for source, target, seed in runs:
        console.print(f"{source or 'all others'} to {target or 'all others'}, "
                      f"seed {seed}")  # fmt: skip
    console.print(f"{len(runs)} runs, in {benchmark.out}; dry run, nothing started")


if __name__ == "__main__":
    sys.exit(main())
