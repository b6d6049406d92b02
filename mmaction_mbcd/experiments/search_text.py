"""A search as tables, figures and files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml
from rich.table import Table

from ..errors import UsageError
from .experiment import Experiment
from .search import (
    Trial,
    by_budget,
    final_grid,
    over_searches,
    points,
    read_trials,
    summarise,
    tabulate,
    target_accuracy,
    write_csv,
)
from .search_figures import draw_budget, draw_values
from .search_space import Search

FINAL_FILE = "final.yaml"


@dataclass
class Found:
    """What a search has found so far.

    Attributes:
        experiment: Its runs.
        trials: Of every method.
        frame: One row each, see :func:`.search.tabulate`.
        with_target: Whether the frame has their accuracy on the target.
        unfinished: Why nothing is chosen yet, or ``''``.
    """

    experiment: Experiment
    trials: list[Trial]
    frame: pd.DataFrame
    with_target: bool = False
    unfinished: str = field(default="", init=False)

    @classmethod
    def read(cls, experiment: Experiment, with_target: bool = False) -> Found:
        """Reads the trials; the target's accuracy only if it is asked for."""
        trials = read_trials(experiment)
        frame = tabulate(experiment, trials)
        if with_target:
            rule = cls(experiment, trials, frame).search.by
            frame["target_accuracy"] = [target_accuracy(t, rule) for t in trials]
        return cls(experiment, trials, frame, with_target)

    @property
    def search(self) -> Search:
        """The search's settings."""
        return Search.of(self.experiment.grid.search)

    # ------------------------------------------------------------------------- files

    def write(self, folder: Path) -> Iterator[Path]:
        """Writes tables, figures and, once all is chosen, the grid that trains it.

        Args:
            folder: Where.
        """
        yield write_csv(self.frame, folder / "trials.csv")
        yield write_csv(summarise(self.frame), folder / "choices.csv")
        if self.frame.validation.notna().any():
            yield from self._figures(folder)
        final = folder / FINAL_FILE
        try:
            content = final_grid(self.experiment, self.trials, self.frame)
        except UsageError as error:
            self.unfinished = str(error)
            final.unlink(missing_ok=True)  # of a shorter search
            return
        text = yaml.safe_dump(content, sort_keys=False)
        final.write_text(text, encoding="utf-8")
        yield final

    def _figures(self, folder: Path) -> Iterator[Path]:
        place = ["dataset", "modalities"]
        for key, own in by_budget(self.frame).groupby(place, sort=False):
            yield draw_budget(own, folder / _file_name("budget", *key))[0]
        every = points(self.frame, self.search)
        for key, own in every.groupby([*place, "method"], sort=False):
            yield draw_values(own, folder / _file_name("values", *key))[0]

    # ------------------------------------------------------------------------- shown

    def shown(self, every: bool = False) -> Iterator[Table]:
        """Tables for a terminal.

        Args:
            every: All trials, not the chosen ones alone.
        """
        yield self._choices()
        for _, group in self.frame.groupby(["dataset", "method"], sort=False):
            if every:
                yield self._trials(group)
        if self.with_target and len(self.search.seeds) > 1:
            yield self._repeated()

    def _choices(self) -> Table:
        by = self.search.by.replace("_", " ")
        shown = Table(title=f"Search: chosen by {by}, top-1 %", title_justify="left")
        for name in ("method", "place", "trials", "default", "best", "chosen"):
            shown.add_column(name)
        rows = self.frame.set_index(["search", *_KEY, "trial"])
        for row in summarise(self.frame).itertuples():
            values = "-"
            if pd.notna(row.trial):
                key = (row.search, *(getattr(row, c) for c in _KEY), row.trial)
                values = f"trial {row.trial:.0f}: {self._values(rows.loc[key], row)}"
            failed = f", {row.failed} failed" if row.failed else ""
            shown.add_row(
                row.method,
                _place(row),
                f"{row.ended}/{row.trials}{failed}",
                _percent(row.default),
                _percent(row.validation),
                values,
            )
        return shown

    def _values(self, row: pd.Series, key: tuple) -> str:
        names = [each.name for each in self.search.space(key.method)]
        return ", ".join(f"{name} {_value(row[name])}" for name in names)

    def _trials(self, group: pd.DataFrame) -> Table:
        method = group.method.iloc[0]
        names = [each.name for each in self.search.space(method)]
        shown = Table(title=f"{group.dataset.iloc[0]} {method}", title_justify="left")
        target = ["target (not used)"] if self.with_target else []
        for name in ("place", "trial", "validation", "rank", *target, *names):
            shown.add_column(name)
        for row in group.itertuples():
            shown.add_row(
                _place(row),
                f"{row.trial}",
                _percent(row.validation) if row.state == "finished" else row.state,
                f"{row.rank:.0f}" + "*" * row.chosen if pd.notna(row.rank) else "-",
                *([_percent(row.target_accuracy)] if self.with_target else []),
                *(_value(group.loc[row.Index, name]) for name in names),
            )
        return shown

    def _repeated(self) -> Table:
        shown = Table(
            title="Target, top-1 %: mean and standard error over searches of the "
            "chosen trials",
            title_justify="left",
        )
        for name in ("method", "place", "searches", "mean", "standard error"):
            shown.add_column(name)
        for row in over_searches(self.frame).itertuples():
            shown.add_row(
                row.method,
                _place(row),
                str(row.searches),
                _percent(row.mean),
                _percent(row.se),
            )
        return shown

    def notes(self) -> Iterator[str]:
        """What a reader must know, and what is next."""
        if failed := int((self.frame.state == "failed").sum()):
            yield (
                f"{failed} trials failed; they count as tried and are not chosen "
                "(`resume` repeats them)."
            )
        if self.with_target:
            yield "The target's accuracy is shown because you asked; it chose nothing."
        if self.unfinished:
            yield self.unfinished
            return
        out = self.experiment.out
        yield (
            "Next, the chosen configurations with the grid's seeds: `run "
            f"{out / 'search' / FINAL_FILE} --out {out / 'final'}`"
        )


_KEY = ["dataset", "modalities", "sources", "target", "method"]


def _place(row: tuple) -> str:
    parts = (row.dataset, row.modalities, row.sources)
    text = " ".join(filter(None, parts)) + f" to {row.target or 'all'}"
    return text + (f", search {row.search}" if row.search else "")


def _percent(value: float) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.2f}"


def _value(value: object) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _file_name(*parts: str) -> str:
    return "_".join(filter(None, (re.sub(r"[^\w.+-]+", "-", part) for part in parts)))
