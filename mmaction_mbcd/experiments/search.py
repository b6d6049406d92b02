"""What a search found: its trials, and the one that the sources' clips choose.

The target has no part in it: a trial's worth is its best epoch's accuracy on the
validation clips of its sources (or on sources left out of training), averaged over its
seeds. Of equal ones the earlier trial is chosen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..analysis.curves import read_curves
from ..errors import UsageError
from .experiment import Experiment, PlannedRun
from .grid import Grid
from .run_folder import RunFolder
from .search_space import (
    Search,
    chosen_key,
    drawn_settings,
    read_trial_name,
    values_of,
)

GROUP = ["search", "dataset", "modalities", "sources", "target", "method"]
"""Columns that name a choice."""

_ENDED = ("finished", "failed")


@dataclass(frozen=True)
class Trial:
    """One configuration of a method in one place, all its trainings.

    Attributes:
        search: The search's seed.
        number: From 0, the config's own values.
        runs: One per training seed.
        values: ``{name: value}`` of its hyper-parameters.
        drawn: What of its runs' settings the search drew, ``key=value``.
    """

    search: int
    number: int
    runs: tuple[PlannedRun, ...]
    values: dict
    drawn: tuple[str, ...] = ()

    @property
    def group(self) -> tuple:
        """Of :data:`GROUP`."""
        spec = self.runs[0].spec
        several = (spec.modalities, spec.sources, spec.target)
        return (
            self.search,
            spec.dataset,
            *(" ".join(each) for each in several),
            spec.method,
        )

    @property
    def state(self) -> str:
        """``'finished'``, ``'failed'``, or ``'open'`` while a training is to come."""
        states = {run.folder.state for run in self.runs}
        if states <= set(_ENDED):
            return "failed" if "failed" in states else "finished"
        return "open"


def read_trials(experiment: Experiment) -> list[Trial]:
    """The trials of a search, in the order of the grid.

    Raises:
        UsageError: If the grid has no search, or methods have different budgets.
    """
    if experiment.grid.search is None:
        raise UsageError(
            f"{experiment.out} holds no search: its grid has no key `search`"
        )
    search = Search.of(experiment.grid.search)
    found: dict[tuple, list[PlannedRun]] = {}
    for run in experiment.runs:
        if run.spec.purpose == "grid":
            seed, number = read_trial_name(run.spec.variant)
            place = dataclasses.replace(run.spec, seed=0)
            found.setdefault((seed, number, place), []).append(run)
    trials = [
        Trial(
            seed,
            number,
            tuple(runs),
            values_of(search, place),
            drawn_settings(search, place),
        )
        for (seed, number, place), runs in found.items()
    ]
    _refuse_unequal(trials, search)
    return trials


def _refuse_unequal(trials: Sequence[Trial], search: Search) -> None:
    """A method with more trials than another would be favoured."""
    counts: dict[tuple, int] = {}
    for trial in trials:
        counts[trial.group] = counts.get(trial.group, 0) + len(trial.runs)
    wanted = search.budget * search.seeds_per_trial
    if wrong := {g[-1]: n for g, n in counts.items() if n != wanted}:
        raise UsageError(
            f"every method gets {wanted} runs of the search, but "
            + ", ".join(f"{method} has {n}" for method, n in wrong.items())
        )


# ------------------------------------------------------------------------- their worth


def source_validation(folder: RunFolder) -> float:
    """The best epoch's accuracy on the sources' validation clips; NaN if unknown."""
    try:
        return float(read_curves(folder.path)["source/top1"].max())
    except FileNotFoundError:
        return np.nan


def left_out_validation(folders: Sequence[RunFolder]) -> float:
    """The best epoch's mean accuracy on sources that were left out; NaN if unknown.

    Args:
        folders: Of the runs that leave out one source each; what they call their target
            is that source.
    """
    try:
        curves = [read_curves(folder.path)["target/top1"] for folder in folders]
    except (FileNotFoundError, KeyError):
        return np.nan
    if not curves:
        return np.nan
    return float(pd.concat(curves, axis=1).dropna().mean(axis=1).max())


def worth(experiment: Experiment, trial: Trial, by: str) -> np.ndarray:
    """A trial's validation accuracies, ``(seeds,)`` in [0, 1]; NaN where unknown.

    Args:
        experiment: Whose it is.
        trial: What is asked about.
        by: Of :data:`.search_space.BY`.
    """
    if trial.state != "finished":
        return np.full(len(trial.runs), np.nan)
    if by == "source":
        return np.array([source_validation(run.folder) for run in trial.runs])
    return np.array(
        [
            left_out_validation([each.folder for each in experiment.left_out(run)])
            for run in trial.runs
        ]
    )


def tabulate(experiment: Experiment, trials: Sequence[Trial]) -> pd.DataFrame:
    """One row per trial.

    Returns:
        The columns of :data:`GROUP`, ``trial``, ``state``, ``seeds``, ``validation``
        (mean over seeds, in [0, 1]), ``sd`` (ddof 1), ``rank`` within the group (NaN
        without validation), ``chosen``, and one column per hyper-parameter.
    """
    by = Search.of(experiment.grid.search).by
    rows = []
    for trial in trials:
        found = worth(experiment, trial, by)
        rows.append(
            dict(zip(GROUP, trial.group, strict=True))
            | dict(
                trial=trial.number,
                state=trial.state,
                seeds=len(found),
                validation=found.mean(),
                sd=found.std(ddof=1) if len(found) > 1 else np.nan,
            )
            | trial.values
        )
    return choose(pd.DataFrame(rows))


def choose(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds ``rank`` and ``chosen``: the best validation, of equal ones the earlier.

    A group chooses once all its trials have ended; one that failed is never chosen.

    Args:
        frame: Rows with :data:`GROUP`, ``trial``, ``state`` and ``validation``.
    """
    # Means of the same numbers in another order differ in their last digit.
    worth = frame.validation.round(12)
    order = frame.assign(worth=worth).sort_values(
        ["worth", "trial"], ascending=[False, True], kind="stable"
    )
    rank = order.groupby(GROUP, sort=False).cumcount() + 1
    rank = rank.where(order.worth.notna()).reindex(frame.index)
    ended = frame.state.isin(_ENDED).groupby([frame[c] for c in GROUP]).transform("all")
    place = frame.columns.get_loc("validation") + 1 + ("sd" in frame)
    frame = frame.copy()
    frame.insert(place, "rank", rank)
    frame.insert(place + 1, "chosen", (rank == 1) & ended)
    return frame


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per choice: how many trials have ended, and what was chosen.

    Returns:
        :data:`GROUP`, ``trials``, ``ended``, ``failed``, ``default`` (trial 0's
        validation), ``trial`` and ``validation`` of the chosen one (NaN before).
    """
    rows = []
    for key, group in frame.groupby(GROUP, sort=False):
        chosen = group[group.chosen]
        rows.append(
            dict(zip(GROUP, key, strict=True))
            | dict(
                trials=len(group),
                ended=int(group.state.isin(_ENDED).sum()),
                failed=int((group.state == "failed").sum()),
                default=group.validation[group.trial == 0].iloc[0],
                trial=chosen.trial.iloc[0] if len(chosen) else np.nan,
                validation=chosen.validation.iloc[0] if len(chosen) else np.nan,
            )
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------- what follows


def final_grid(
    experiment: Experiment, trials: Sequence[Trial], frame: pd.DataFrame
) -> dict:
    """The grid that trains what was chosen with the seeds of the grid.

    Args:
        experiment: The search.
        trials: From :func:`read_trials`.
        frame: From :func:`tabulate`, its rows in the same order.

    Returns:
        Keys and values of a grid file.

    Raises:
        UsageError: If a method's search has not ended, or all its trials failed.
    """
    summary = summarise(frame)
    if not (summary.ended == summary.trials).all():
        left = int((summary.trials - summary.ended).sum())
        raise UsageError(f"{left} trials have not ended: `run` goes on with them")
    nothing = summary.trial.isna()
    if nothing.any():
        raise UsageError(
            "no trial of "
            + ", ".join(f"{r.method} {r.target}" for r in summary[nothing].itertuples())
            + " has a validation: `status` shows why they failed"
        )
    several = frame.search.nunique() > 1
    chosen = [
        _choice(trial, several)
        for trial, is_chosen in zip(trials, frame.chosen, strict=True)
        if is_chosen
    ]
    given = {
        f.name: getattr(experiment.grid, f.name)
        for f in dataclasses.fields(Grid)
        # A search keeps no checkpoints; what it chose is to be evaluated.
        if f.name
        not in (
            "search",
            "chosen",
            "keep_checkpoints",
            *(["reference"] if several else []),
        )
    }
    content = {key: value for key, value in given.items() if value}
    # Through JSON, so that a YAML file can hold it: lists for tuples.
    return json.loads(json.dumps(content | dict(chosen=chosen)))


def _choice(trial: Trial, several: bool) -> dict:
    spec = trial.runs[0].spec
    return chosen_key(spec) | dict(
        trial=trial.number,
        variant=f"search{trial.search}" if several else "",
        settings=list(trial.drawn),
    )


def target_accuracy(trial: Trial, rule: str) -> float:
    """On the target, mean over seeds; it has no part in a choice. NaN if not tested."""
    found = [run.folder.results(rule).get("metrics", {}) for run in trial.runs]
    return float(np.mean([each.get("target/top1", np.nan) for each in found]))


def over_searches(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over repeated searches, DomainBed's protocol.

    Args:
        frame: From :func:`tabulate`, with a column ``target_accuracy``.

    Returns:
        One row per dataset, modalities, place and method with ``searches`` (S),
        ``mean`` and ``se`` (sd with ddof 1 / sqrt(S); NaN for one search) of the chosen
        trials' accuracy on the target.
    """
    chosen = frame[frame.chosen].groupby(GROUP[1:], sort=False).target_accuracy
    return chosen.agg(searches="size", mean="mean", se="sem").reset_index()


# ------------------------------------------------------------------------ the budget


def expected_best(values: Sequence[float]) -> np.ndarray:
    """Expected best of n random trials, n = 1 ... B (Dodge et al. 2019, section 3).

    Args:
        values: Validation accuracies of B trials.

    Returns:
        ``(B,)``: the mean of the maximum of n draws with replacement.
    """
    ordered = np.sort(np.asarray(values, float))
    below = np.arange(len(ordered) + 1) / len(ordered)
    n = np.arange(1, len(ordered) + 1)[:, None]
    return np.diff(below**n, axis=1) @ ordered


def by_budget(frame: pd.DataFrame) -> pd.DataFrame:
    """How the best validation grows with the number of trials.

    Returns:
        :data:`GROUP`, ``budget``, ``best`` (of the first trials) and ``expected`` (of
        as many random ones, the config's own left out; NaN where there are fewer).
    """
    parts = []
    for key, group in frame.groupby(GROUP, sort=False):
        group = group.sort_values("trial")
        random = group.validation[group.trial > 0].dropna()
        expected = pd.Series(expected_best(random) if len(random) else [], dtype=float)
        part = pd.DataFrame(
            dict(
                budget=group.trial.to_numpy() + 1,
                best=group.validation.cummax().ffill().to_numpy(),
                expected=expected.reindex(range(len(group))).to_numpy(),
            )
        )
        parts.append(part.assign(**dict(zip(GROUP, key, strict=True))))
    return pd.concat(parts, ignore_index=True)[[*GROUP, "budget", "best", "expected"]]


def points(frame: pd.DataFrame, search: Search) -> pd.DataFrame:
    """Validation against each hyper-parameter, one row per trial and hyper-parameter.

    Returns:
        :data:`GROUP`, ``trial``, ``validation``, ``chosen``, ``hyper_parameter``,
        ``value`` and ``scale`` (the kind of its range).
    """
    known = [*GROUP, "trial", "validation", "chosen"]
    parts = []
    for method, own in frame.groupby("method", sort=False):
        for each in search.space(method):
            part = own[known].assign(
                hyper_parameter=each.name,
                value=pd.to_numeric(own[each.name], errors="coerce"),
                scale=type(each.range).__name__,
            )
            parts.append(part.dropna(subset=["value", "validation"]))
    return pd.concat(parts, ignore_index=True)


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Writes a table; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path
