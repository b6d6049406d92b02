"""Figures of a grid: the methods of one place side by side."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..analysis.curves import read_curves
from ..analysis.figure_kinds import KINDS, FigureOptions, make_figure
from ..analysis.run_folders import Run
from ..analysis.seed_curves import average_curves, draw_seed_curves
from ..errors import UsageError
from .experiment import Experiment, PlannedRun

OVER_SEEDS = "seeds"
"""The kind that has all seeds in one figure: curves and their intervals."""

ALL_KINDS = (*KINDS, OVER_SEEDS)

FROM_RECORDS = ("curves", "modalities", "balance", OVER_SEEDS)
"""Kinds that read logs and kept predictions: no checkpoint is evaluated."""

FOLDER = "figures"
"""Of the grid's folder; ``report`` puts what lies there into its page."""


def draw(
    experiment: Experiment,
    kinds: Sequence[str] = FROM_RECORDS,
    seed: int | None = None,
    rule: str | None = None,
    options: FigureOptions | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Path | str]:
    """Draws each kind once for each data set, set of modalities, sources and target.

    Args:
        experiment: Its finished runs.
        kinds: Of :data:`ALL_KINDS`.
        seed: Whose runs; the grid's first if None.
        rule: Whose epochs; the grid's first if None, whose checkpoint a run keeps.
        options: Of the figures; their folder is set here.
        advance: Called behind each figure.

    Yields:
        The files, and in words what could not be drawn.

    Raises:
        UsageError: For a kind that is none, a rule that the grid has not, or if no run
            of the seed is finished.
    """
    if unknown := [kind for kind in kinds if kind not in ALL_KINDS]:
        raise UsageError(
            f"no figures of kind {', '.join(unknown)}; there are {', '.join(ALL_KINDS)}"
        )
    rules = experiment.grid.select
    if rule is not None and rule not in rules:
        raise UsageError(
            f"the grid does not select by {rule!r}, but by {', '.join(rules)}: add it "
            "to the grid and run it again; what is there is kept"
        )
    seed = experiment.grid.seeds[0] if seed is None else seed
    groups, own = by_place(experiment, seed), [k for k in kinds if k != OVER_SEEDS]
    if own and not groups:
        raise UsageError(
            f"no run of seed {seed} in {experiment.out} is finished: run it first, or "
            "choose another --seed"
        )
    for place, planned in groups.items():
        runs = [_run(experiment, each, rule or rules[0]) for each in planned]
        place += f"_seed{seed}" + (f"_{rule}" if rule else "")
        for kind in own:
            try:
                _refuse_what_is_gone(kind, runs)
                yield from _draw(experiment, kind, place, runs, options)
            except UsageError as error:
                yield f"no {kind} of {place}: {error}"
            advance()
    if OVER_SEEDS in kinds:
        for place, planned in by_place(experiment).items():
            yield from _draw_seeds(experiment, place, planned)
            advance()


def by_place(
    experiment: Experiment, seed: int | None = None
) -> dict[str, list[PlannedRun]]:
    """Finished runs of one seed, or of all, by the place that they share."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in experiment.runs:
        spec = run.spec
        if spec.purpose == "grid" and seed in (None, spec.seed):
            if run.folder.state == "finished":
                shared = (spec.dataset, "-".join(spec.modalities), spec.place)
                groups.setdefault("_".join(filter(None, shared)), []).append(run)
    return groups


def _draw_seeds(
    experiment: Experiment, place: str, planned: Sequence[PlannedRun]
) -> Iterator[Path | str]:
    curves: dict[str, dict[int, pd.DataFrame]] = {}
    for run in planned:
        try:
            frame = read_curves(run.folder.path)
        except FileNotFoundError as error:
            yield f"{run.folder.path.name} is not in {OVER_SEEDS} of {place}: {error}"
            continue
        curves.setdefault(run.spec.name, {})[run.spec.seed] = frame
    if not curves:
        return
    reference = experiment.grid.reference
    data = average_curves(curves, reference)
    target = ", ".join(planned[0].spec.target) or "target"
    name = re.sub(r"[^\w.+-]", "-", f"{place}_{OVER_SEEDS}")
    yield from draw_seed_curves(data, experiment.out / FOLDER / name, reference, target)


def _run(experiment: Experiment, planned: PlannedRun, rule: str) -> Run:
    """A run at the epoch that a rule has chosen, as far as its folder holds it."""
    folder, evaluations = planned.folder, experiment.grid.evaluate
    tested = "target" if "target" in evaluations else evaluations[0]
    epoch = folder.results(rule, tested).get("epoch")
    file = None if epoch is None else experiment.job(planned).checkpoint_of(epoch)
    predictions = folder.predictions_file(rule)
    return Run(
        planned.spec.name,
        folder.path,
        file,
        predictions=predictions if predictions.is_file() else None,
        epoch=epoch,
    )


def _refuse_what_is_gone(kind: str, runs: Sequence[Run]) -> None:
    """No other epoch's weights stand in for those that the rule has chosen."""
    for run in runs:
        kept = run.predictions if kind == "modalities" else kind in FROM_RECORDS
        if not kept and run.file is None:
            epoch = "that was chosen" if run.epoch is None else run.epoch
            raise UsageError(
                f"{run.name}: the checkpoint of epoch {epoch} is gone; a finished run "
                "keeps that of the grid's first rule, with `keep_checkpoints: all` "
                "every one"
            )


def _draw(
    experiment: Experiment,
    kind: str,
    place: str,
    runs: Sequence[Run],
    options: FigureOptions | None,
) -> Iterator[Path]:
    out = experiment.out / FOLDER
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        own = dataclasses.replace(options or FigureOptions(out), out=Path(folder))
        files, _ = make_figure(kind, runs, own)
        for file in files:
            name = re.sub(r"[^\w.+-]", "-", f"{place}_{file.name}")
            yield file.rename(out / name)
