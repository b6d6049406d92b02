"""What was measured, on the terminal and in a file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from rich.table import Table

from ..errors import UsageError
from ..progress import duration
from .epochs import EpochFigures
from .reading import ReadingFigures
from .steps import StepFigures, middle, spread


def environment(device: str) -> dict:
    """When, where and with what: date, machine, versions, threads, command."""
    return dict(
        date=date.today().isoformat(),
        device=(torch.cuda.get_device_name() if device == "cuda" else _processor()),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        command=" ".join(["python", *sys.argv]),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def caption(facts: Mapping) -> str:
    """One line of :func:`environment`."""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return f"{facts['date']}, {facts['device']}, {threads}, torch {facts['torch']}"


def step_table(title: str, rows: Sequence[StepFigures], facts: Mapping) -> Table:
    """A row for each setting, the reference first; a ratio's range stands behind it."""
    table = Table(title=title, title_justify="left", caption=caption(facts))
    table.add_column("method")
    for column in (
        "GFLOP", "ratio", "floor's ratio", "over floor", "s/step", "ratio (range)",
        "MiB", "waits",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        low, high = spread(row.ratios)
        table.add_row(
            row.name,
            f"{row.flops / 1e9:,.4g}",
            f"{row.flops_ratio:.2f}",
            f"{row.floor_ratio:.2f}",
            f"{100 * (row.flops / row.floor - 1):+.1f} %",
            f"{middle(row.seconds):.3g}",
            f"{middle(row.ratios):.2f} ({low:.2f}-{high:.2f})",
            "-" if row.memory is None else f"{row.memory:,.0f}",
            str(sum(row.waits.values())),
        )
    return table


def profile_table(title: str, entries: Sequence[Mapping], unit: str = "step") -> Table:
    """The largest entries of a profile."""
    table = Table(title=title, title_justify="left")
    table.add_column("operator", overflow="fold")
    for column in (f"ms/{unit}", "share", f"calls/{unit}"):
        table.add_column(column, justify="right")
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['milliseconds']:,.3g}",
            f"{100 * entry['share']:.1f} %",
            f"{entry['calls']:,.0f}",
        )
    return table


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes a file of numbers.

    Raises:
        UsageError: If it cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--json: {error}") from error


def epoch_table(
    found: Mapping[str, Sequence[EpochFigures]], reads: str, facts: Mapping
) -> Table:
    """A row for each precision: medians of its epochs, and the range of their speed."""
    title = f"An epoch that reads {reads}"
    table = Table(title=title, title_justify="left", caption=caption(facts))
    table.add_column("precision")
    for column in (
        "processes", "steps", "batch", "first batch", "data", "step", "waiting",
        "clips/s (range)", "20 x 399 x 16 clips",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, epochs in found.items():
        speeds = [each.clips_per_second for each in epochs]
        low, high = spread(speeds)
        table.add_row(
            name,
            str(epochs[0].processes),
            str(len(epochs[0].stepped)),
            str(epochs[0].batch),
            f"{middle([each.first_batch for each in epochs]):.2f} s",
            f"{middle([sum(each.waited[1:]) for each in epochs]):.2f} s",
            f"{middle([sum(each.stepped[1:]) for each in epochs]):.2f} s",
            f"{100 * middle([each.waiting_share for each in epochs]):.0f} %",
            f"{middle(speeds):,.1f} ({low:,.1f}-{high:,.1f})",
            duration(60 * middle([each.paper_minutes for each in epochs])),
        )
    return table


def reading_table(rows: Sequence[ReadingFigures], facts: Mapping) -> Table:
    """A row for each way of reading; the range of a ratio stands behind it."""
    table = Table(title="Reading a clip", title_justify="left", caption=caption(facts))
    table.add_column("from")
    for column in (
        "CPU ms/clip", "clips/s and core", f"times {rows[0].name}", "MB/clip stored",
        "CPU ms/clip to store",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        seconds = middle(row.seconds)
        low, high = spread(row.ratios)
        table.add_row(
            row.name,
            f"{1e3 * seconds:.1f}",
            f"{1 / seconds:.1f}",
            f"{middle(row.ratios):.2f} ({low:.2f}-{high:.2f})",
            f"{row.stored / 1e6:.2f}" if row.stored else "",
            f"{1e3 * row.packed:.0f}" if row.packed else "",
        )
    return table
