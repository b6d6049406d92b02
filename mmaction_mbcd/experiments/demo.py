"""The demo: make data, train the methods, select, test, show.

Every step is the public one: the generator, ``tools/train.py`` and ``tools/test.py``
with the configs of ``configs/mbcd/synth_action`` in processes of their own.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from .. import scripts
from ..analysis.curves import draw_curves, read_curves
from ..analysis.statistics import accuracy_interval
from ..cores import usable_cores
from ..datasets.synth import SynthConfig, generate
from .running import RULE, best_checkpoint, run_tool


@dataclass
class DemoOptions:
    """What :func:`run_demo` does.

    Attributes:
        repo: The repository's root, where ``configs`` and ``tools`` lie.
        out: Folder for data, runs, table and figure.
        methods: Names of configs below ``configs/mbcd/synth_action``.
        seed: Of data and training.
        synth: Overrides of :class:`SynthConfig`.
        cfg_options: Further ``--cfg-options`` for training and testing.
        epochs: Length of training; the config's if None.
        threads: OpenMP threads of the training process. One: the two worker
            processes decode on the other core, and more threads would wait for it.
    """

    repo: Path
    out: Path
    methods: Sequence[str] = ("erm", "ema", "mbcd")
    seed: int = 0
    synth: dict = field(default_factory=dict)
    cfg_options: Sequence[str] = ()
    epochs: int | None = None
    threads: int = 1


def run_demo(options: DemoOptions, console: Console | None = None) -> pd.DataFrame:
    """Runs everything and returns the table.

    Args:
        options: See :class:`DemoOptions`.
        console: Where to print; standard output if None.

    Returns:
        One row per method, accuracies in percent.

    Raises:
        RunError: If training or testing fails.
    """
    # A file or a pipe has no width of its own, and the table needs some.
    console = console or Console(width=None if sys.stdout.isatty() else 100)
    started = time.perf_counter()
    scripts.prepare(options.threads)  # the workers that render come from it as well
    options.out.mkdir(parents=True, exist_ok=True)
    synth = SynthConfig(seed=options.seed, **options.synth)
    console.print(f"[bold]1. Data[/bold]  {options.out / 'data'}")
    meta = generate(options.out / "data", synth, workers=usable_cores())
    console.print(
        f"   {len(meta['classes'])} actions in {', '.join(meta['domains'])}; the "
        f"target {synth.target!r} is never trained on"
    )
    console.print("[bold]2. Training and testing[/bold]")
    rows, curves = [], {}
    for method in options.methods:
        rows.append(_run_method(options, method, console))
        curves[rows[-1]["method"]] = read_curves(options.out / method)
    table = pd.DataFrame(rows)
    table.to_csv(options.out / "results.csv", index=False)
    own = {"fused", "student"}
    modalities = [c[:-5] for c in table if c.endswith(" top1") and c[:-5] not in own]
    _print_table(table, modalities, synth.target, options, console)
    figure, *_ = draw_curves(
        curves,
        modalities,
        options.out / "curves",
        {row["method"]: row["epoch"] for row in rows},
        str(synth.target),
    )
    minutes = (time.perf_counter() - started) / 60
    console.print(f"   curves: {figure}\n   table:  {options.out / 'results.csv'}")
    console.print(f"   everything took {minutes:.1f} minutes")
    return table


def _run_method(options: DemoOptions, method: str, console: Console) -> dict:
    config = options.repo / "configs" / "mbcd" / "synth_action" / f"{method}.py"
    work_dir = options.out / method
    data_root = options.out / "data"
    common = ["--work-dir", str(work_dir), "--cfg-options"]
    common += [
        f"{split}_dataloader.dataset.data_root={data_root}"
        for split in ("train", "val", "test")
    ]
    common += list(options.cfg_options)
    if options.epochs is not None:
        common.append(f"train_cfg.max_epochs={options.epochs}")
    if (work_dir / "train.log").exists():
        shutil.rmtree(work_dir)  # an earlier demo's; its curves would mix with ours
    started = time.perf_counter()
    train = ["train.py", str(config), "--seed", str(options.seed), *common]
    _run(options, train, f"   {method} train", work_dir / "train.log", console)
    seconds = time.perf_counter() - started
    best, epoch = best_checkpoint(work_dir)
    results = work_dir / "results.json"
    test = ["test.py", str(config), str(best), "--out", str(results), *common]
    _run(options, test, f"   {method} test", work_dir / "test.log", console)
    found = json.loads(results.read_text())
    metrics, count = found["metrics"], int(found["metrics"]["target/N"])
    low, high = accuracy_interval(metrics["target/top1"], count)
    row = {
        "method": _name(config),
        "fused top1": 100 * metrics["target/top1"],
        "low": 100 * low,
        "high": 100 * high,
    }
    row |= {
        f"{key.split('/')[1]} top1": 100 * value
        for key, value in metrics.items()
        if re.fullmatch(r"target/\w+/top1", key)
    }
    curves = read_curves(work_dir)
    return row | {
        "student top1": 100 * metrics.get("student/target/top1", float("nan")),
        "source validation": 100 * curves.loc[epoch, "source/top1"],
        "N": count,
        "selection": RULE,
        "epoch": epoch,
        "seed": options.seed,
        "train seconds": seconds,
    }


def _name(config: Path) -> str:
    from mmengine.config import Config

    return Config.fromfile(config)["method"]["name"]


def _run(
    options: DemoOptions, command: list[str], title: str, log: Path, console: Console
) -> None:
    run_tool(options.repo, command, title, log, console, options.threads)


def _print_table(
    table: pd.DataFrame,
    modalities: Sequence[str],
    target: object,
    options: DemoOptions,
    console: Console,
) -> None:
    count = int(table["N"].iloc[0])
    shown = Table(
        title=f"Top-1 % on unseen {target!r}: N = {count} clips, epoch by {RULE}, "
        f"seed {options.seed}",
        title_justify="left",
    )
    shown.add_column("method")
    shown.add_column("fused [95 % interval]", justify="right", no_wrap=True)
    for m in modalities:
        shown.add_column(m, justify="right")
    shown.add_column("student", justify="right")
    shown.add_column("source val.", justify="right")
    shown.add_column("epoch", justify="right")
    shown.add_column("train", justify="right")
    for _, row in table.iterrows():
        student = row["student top1"]
        shown.add_row(
            row["method"],
            f"{row['fused top1']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
            *(f"{row[f'{m} top1']:.1f}" for m in modalities),
            "-" if pd.isna(student) else f"{student:.1f}",
            f"{row['source validation']:.1f}",
            str(row["epoch"]),
            f"{row['train seconds']:.0f} s",
        )
    console.print("[bold]3. Result[/bold]")
    console.print(shown)
    for line in (
        "The interval is Wilson's, for the choice of clips alone; seeds differ too.",
        "EMA and MBCD are evaluated by their averaged weights; the student stands "
        "beside.",
        "A modality's accuracy is its own head's: ERM and EMA have probes on detached "
        "features.",
    ):
        console.print(f"   {line}")
