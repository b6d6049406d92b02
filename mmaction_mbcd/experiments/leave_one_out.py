"""Every domain as the unseen one, in turn: train, select, test, tabulate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from ..analysis.statistics import accuracy_interval
from .running import RULE, RunError, best_checkpoint, run_tool

_INTERVAL = (
    "   The interval is Wilson's, for the choice of clips alone; seeds differ too."
)


@dataclass
class Benchmark:
    """What :func:`run_benchmark` does.

    Attributes:
        repo: The repository's root.
        config: Config file.
        domains: Of the dataset, all of them.
        out: Folder for runs and tables.
        chosen: Targets (or, with ``single_source``, sources) to run; all if empty.
        seeds: One training each.
        single_source: Train on one domain and test on each other one, instead of
            training on all but one and testing on that.
        options: Further options of the tools, as on their command lines.
        keep_all: Keep the latest checkpoints of a finished run beside the best one.
    """

    repo: Path
    config: Path
    domains: Sequence[str]
    out: Path
    chosen: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    single_source: bool = False
    options: Sequence[str] = ()
    keep_all: bool = False

    def runs(self) -> list[tuple[str, str, int]]:
        """``(sources or '', target or '', seed)`` of every training."""
        chosen = self.chosen or self.domains
        unknown = [name for name in chosen if name not in self.domains]
        if unknown:
            raise ValueError(
                f"unknown domains {unknown}; the dataset has {list(self.domains)}"
            )
        if len(self.domains) < 2:
            raise ValueError(
                "leaving one domain out needs at least two; the dataset has "
                f"{list(self.domains)}"
            )
        return [
            (name, "", seed) if self.single_source else ("", name, seed)
            for name in chosen
            for seed in self.seeds
        ]


def run_benchmark(benchmark: Benchmark, console: Console) -> pd.DataFrame:
    """Runs what is not there yet and returns one row per run and target.

    A finished run is not repeated and an interrupted one is resumed.

    Args:
        benchmark: What to do.
        console: Where progress and table are printed.

    Returns:
        Columns source, target, seed, top1, low, high (percent; Wilson's 95 %), N,
        skipped, epoch, selection.

    Raises:
        RunError: If training or testing fails.
        ValueError: For domains that do not exist, or a folder that holds runs of other
            options.
    """
    runs = benchmark.runs()
    _claim(benchmark)
    rows = []
    for number, (source, target, seed) in enumerate(runs, 1):
        title = f"{source} to all" if source else f"to {target}"
        console.print(f"[bold]{number}/{len(runs)}[/bold]  {title}, seed {seed}")
        rows += _run(benchmark, source, target, seed, console)
    table = pd.DataFrame(rows)
    table.to_csv(benchmark.out / "results.csv", index=False)
    return table


def _claim(benchmark: Benchmark) -> None:
    """Refuses to mix runs of different options in one folder.

    A folder in which nothing was trained is free.
    """
    path = benchmark.out / "options.json"
    own = dict(
        config=str(benchmark.config.resolve()),
        single_source=benchmark.single_source,
        options=list(benchmark.options),
    )
    if path.exists() and _was_used(benchmark.out):
        there = json.loads(path.read_text())
        changed = [key for key in own if there.get(key) != own[key]]
        if changed:
            raise ValueError(
                f"{benchmark.out} holds runs with other "
                + ", ".join(f"{key} ({there.get(key)!r})" for key in changed)
                + ": choose another --out, or delete it"
            )
    benchmark.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=2) + "\n")


def _was_used(out: Path) -> bool:
    return any(any(out.glob(name)) for name in ("*/*.pth", "*/results.json"))


def _run(
    benchmark: Benchmark, source: str, target: str, seed: int, console: Console
) -> list[dict]:
    name = f"{source}-to-all" if source else f"to-{target}"
    work_dir = benchmark.out / f"{name}_seed{seed}"
    results = work_dir / "results.json"
    common = ["--sources", source] if source else ["--target", target]
    common += ["--work-dir", str(work_dir), *benchmark.options]
    if results.exists():
        console.print("   already there")
    else:
        train = ["train.py", benchmark.config, "--seed", seed, "--resume", *common]
        run_tool(benchmark.repo, train, "   train", work_dir / "train.log", console)
        best, _ = best_checkpoint(work_dir)
        test = ["test.py", benchmark.config, best, "--out", results, *common]
        run_tool(benchmark.repo, test, "   test", work_dir / "test.log", console)
        if not benchmark.keep_all:
            _drop_latest(work_dir)
    return _rows(benchmark, source, target, seed, results)


def _drop_latest(work_dir: Path) -> None:
    """Removes what only a resumption needs, from a run that is finished and tested."""
    (work_dir / "last_checkpoint").unlink(missing_ok=True)
    for pattern in ("epoch_*.pth", "timed_iter_*.pth"):
        for path in work_dir.glob(pattern):
            path.unlink()


def _rows(
    benchmark: Benchmark, source: str, target: str, seed: int, results: Path
) -> list[dict]:
    found = json.loads(results.read_text())
    metrics = found["metrics"]
    targets = [target] if target else [d for d in benchmark.domains if d != source]
    rows = []
    for name in targets:
        head = "target" if len(targets) == 1 else f"target/{name}"
        if f"{head}/N" not in metrics:
            raise RunError(f"{results} has no {head}/N; delete it and run again")
        count = int(metrics[f"{head}/N"])
        accuracy = metrics[f"{head}/top1"]
        low, high = accuracy_interval(accuracy, count)
        sources = source or ", ".join(d for d in benchmark.domains if d != name)
        rows.append(
            dict(
                source=sources,
                target=name,
                seed=seed,
                top1=100 * accuracy,
                low=100 * low,
                high=100 * high,
                N=count,
                skipped=int(metrics.get("target/skipped", 0)),
                epoch=found.get("epoch"),
                selection=RULE,
            )
        )
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each target, and the average.

    Args:
        table: What :func:`run_benchmark` returned.

    Returns:
        Columns source, target, top1 (mean), std (over seeds, n - 1; not a number with
        one seed), low, high (Wilson's 95 % at the mean, for the choice of clips
        alone), N, seeds. The last row is the average over targets; its std is that of
        the seeds' averages.
    """
    rows = []
    for (source, target), group in table.groupby(["source", "target"], sort=False):
        count = int(group["N"].iloc[0])
        mean = group["top1"].mean()
        # The mean of several runs is not a share of N clips: round to the nearest one.
        low, high = accuracy_interval(round(mean / 100 * count) / count, count)
        rows.append(
            dict(
                source=source,
                target=target,
                top1=mean,
                std=group["top1"].std(),
                low=100 * low,
                high=100 * high,
                N=count,
                seeds=len(group),
            )
        )
    averages = table.groupby("seed")["top1"].mean()
    rows.append(
        dict(
            source="",
            target="average",
            top1=pd.DataFrame(rows)["top1"].mean(),
            std=averages.std(),
            N=sum(row["N"] for row in rows),
            seeds=len(averages),
        )
    )
    return pd.DataFrame(rows)


def print_summary(benchmark: Benchmark, table: pd.DataFrame, console: Console) -> None:
    """The table of :func:`summarise`."""
    shown = Table(
        title=f"Top-1 % on unseen domains: {benchmark.config}, seeds "
        f"{', '.join(map(str, benchmark.seeds))}, epoch by {RULE}",
        title_justify="left",
    )
    for column in ("source", "target"):
        shown.add_column(column)
    for column in ("N", "top-1", "std of seeds", "95 % interval"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in summarise(table).to_dict("records"):
        shown.add_row(
            row["source"],
            row["target"],
            str(row["N"]),
            f"{row['top1']:.1f}",
            "-" if pd.isna(row["std"]) else f"{row['std']:.1f}",
            "-" if pd.isna(row["low"]) else f"[{row['low']:.1f}, {row['high']:.1f}]",
        )
    console.print(shown)
    console.print(_INTERVAL)
    skipped = int(table["skipped"].sum())
    if skipped:
        console.print(
            f"   {skipped} test clips could not be read; the test.log files name them."
        )


def compare(summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What :func:`summarise` returned for several configs, one below the other.

    Args:
        summaries: By the configs' names.

    Returns:
        Its columns behind a first one, config.
    """
    named = [table.assign(config=name) for name, table in summaries.items()]
    table = pd.concat(named, ignore_index=True)
    return table[["config", *table.columns.drop("config")]]


def print_comparison(table: pd.DataFrame, title: str, console: Console) -> None:
    """Configs as rows and targets as columns, of what :func:`compare` returned."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("config", no_wrap=True)
    places = [(r.source, r.target) for r in table.itertuples()]
    places = list(dict.fromkeys(places))
    sources = {target: {s for s, t in places if t == target} for _, target in places}
    for source, target in places:
        # With one source each, a target stands in several columns.
        head = f"{source} to {target}" if len(sources[target]) > 1 else target
        count = table[(table.source == source) & (table.target == target)].N.iloc[0]
        shown.add_column(f"{head}\nN = {count}", justify="right")
    for name, rows in table.groupby("config", sort=False):
        cells = {(r.source, r.target): _cell(r) for r in rows.itertuples()}
        shown.add_row(name, *(cells.get(place, "-") for place in places))
    console.print(shown)
    console.print(_INTERVAL)


def _cell(row: NamedTuple) -> str:
    text = f"{row.top1:.1f}"
    if not pd.isna(row.std):
        text += f" ± {row.std:.1f}"
    return text if pd.isna(row.low) else f"{text}\n[{row.low:.1f}, {row.high:.1f}]"
