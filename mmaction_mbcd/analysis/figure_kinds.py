"""From run folders to figures: what ``tools/figures.py`` does for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UsageError
from ..evaluation.predictions import Predictions
from ..progress import Meter
from .balance import draw_balance, gradient_cosines, read_traces
from .clips import ROLES, HeldClips, chosen_clips, clip_loader
from .curves import correlation_table, draw_curves, read_curves
from .directions import length, perturbed_parameters
from .embeddings import draw_embeddings, measure_embeddings
from .flatness import draw_flatness, flatness_summary, measure_flatness
from .landscape import (
    draw_landscape,
    measure_landscape,
    moving_weights,
    plane_through,
    random_plane,
    same_stems,
)
from .modality_bars import draw_modalities, measure_modalities
from .run_folders import Run, best_checkpoint, epoch_of, parse_runs
from .shapley import draw_shapley, measure_shapley
from .trained import TrainedModel

GAMMAS_BY_FILTER = (0.1, 0.2, 0.3, 0.4, 0.5)
RADIUS_SHARE = 0.5
"""The largest default radius, as a share of the shortest run's weights' norm."""


@dataclass
class FigureOptions:
    """What a figure is made of and how; each kind reads what concerns it.

    Attributes:
        out: Folder of the files.
        data_root: Where the data lie now; as in the runs if None.
        rule: Which checkpoint of a folder: ``'best'`` by source validation, ``'last'``.
        roles: Whose clips: ``'source'`` (validation), ``'target'`` (test), both; the
            kind's own choice if None.
        clips: How many of them, drawn once for all runs; all if None.
        seed: Of that draw, of directions, of t-SNE and of the bootstrap.
        gigabytes: Of memory for clips.
        gammas: Radii of flatness; if None five up to half the smallest norm of
            the runs' weights, or up to 0.5 of each filter's.
        directions: Of flatness, how many.
        by_filter: Of flatness, filter-normalised directions.
        radius: Of the landscape, in multiples of each filter's norm.
        points: Of the landscape, along a side.
        through: One landscape through the weights of three runs.
        surface: Of the landscape, drawn above the contours.
        perplexity: Of t-SNE.
        neighbours: Of the nearest-neighbour accuracy.
        resamples: Of the bootstrap of Shapley values.
        levels: Of the modality shift's noise; those of the suite if None.
        gradients: Balance: gradient cosines of the checkpoints that are left.
    """

    out: Path
    data_root: str | None = None
    rule: str = "best"
    roles: Sequence[str] | None = None
    clips: int | None = None
    seed: int = 0
    gigabytes: float = 4.0
    gammas: Sequence[float] | None = None
    directions: int = 10
    by_filter: bool = False
    radius: float = 1.0
    points: int = 15
    through: bool = False
    surface: bool = True
    perplexity: float = 30.0
    neighbours: int = 5
    resamples: int = 2000
    levels: Sequence[float] | None = None
    gradients: bool = False


def make_figure(
    kind: str, runs: Sequence[str | Run], options: FigureOptions
) -> tuple[list[Path], pd.DataFrame | None]:
    """Measures and draws one kind of figure.

    Args:
        kind: A key of :data:`KINDS`.
        runs: ``[NAME=]FOLDER[@teacher|@student]`` each, or what that says.
        options: What it is made of.

    Returns:
        The files, and the few numbers that sum it up, or None.

    Raises:
        UsageError: For runs that cannot be shown so.
    """
    try:
        return KINDS[kind](parse_runs(runs), options)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


# ----------------------------------------------------------------- from the logs


def _curves(runs: list[Run], options: FigureOptions):
    frames = {run.name: read_curves(run.folder) for run in runs}
    targets = list(dict.fromkeys(run.target() for run in runs))
    modalities = list(dict.fromkeys(m for r in runs for m in r.modalities()))
    selected = {}
    for run in runs:
        chosen = run.file or best_checkpoint(run.folder)
        epoch = run.epoch or (epoch_of(chosen) if chosen else None)
        selected |= {run.name: epoch} if epoch else {}
    name = targets[0] if len(targets) == 1 else "target"
    files = draw_curves(frames, modalities, options.out / "curves", selected, name)
    table = correlation_table(frames)
    return [*files, _table(table, options.out / "curves_correlation.csv")], table


def _balance(runs: list[Run], options: FigureOptions):
    traces, note = {}, ""
    for run in runs:
        traces[run.name] = read_traces(run.folder, run.modalities())
        if options.gradients:
            found, count = _cosines_of_checkpoints(run, options)
            traces[run.name] = pd.concat([traces[run.name], found], ignore_index=True)
            note = f"Gradient cosines of the checkpoints over N = {count} source clips."
    return draw_balance(traces, options.out / "balance", note), None


def _cosines_of_checkpoints(
    run: Run, options: FigureOptions
) -> tuple[pd.DataFrame, int]:
    rows, held = [], None
    for file in run.checkpoints():
        trained = run.load(data_root=options.data_root, checkpoint=file)
        # Stems whose BatchNorm drifts differ between checkpoints: they run each time.
        held = held or _held(trained, "source", run, options, through_stems=False)
        rows += [
            (epoch_of(file), "grad_cos_clips", m, value)
            for m, value in gradient_cosines(trained, held).items()
        ]
    columns = ["epoch", "trace", "modality", "value"]
    return pd.DataFrame(rows, columns=columns), len(held or ())


# ----------------------------------------------------------- from the predictions


def _modalities(runs: list[Run], options: FigureOptions):
    frames, roles, first = [], options.roles or ["target"], {}
    for run in runs:
        predictions = _predictions(run, roles, options)
        shown = predictions.select(np.isin(predictions.roles, roles))
        _refuse_other_clips(first, run, shown.sample_ids.tolist())
        frames.append(measure_modalities(shown).assign(run=run.name))
    frame = pd.concat(frames, ignore_index=True)
    table = frame.pivot(index=["role", "run"], columns="head", values="value")
    files = draw_modalities(frame, options.out / "modalities")
    return files, (100 * table).round(1).reset_index()


def _predictions(run: Run, roles: Sequence[str], options: FigureOptions) -> Predictions:
    """Those that the grid has kept, or else evaluated now."""
    rule = {"best": "source"}.get(options.rule, options.rule)
    kept = run.predictions or run.folder / f"predictions_{rule}.npz"
    asked = (run.file and not run.predictions) or run.weights or options.clips
    if kept.exists() and not asked:
        stored = Predictions.load(kept)
        if set(roles) <= set(stored.roles.tolist()):
            return stored
    trained = run.load(options.rule, options.data_root)
    parts = []
    for role in roles:
        loader = clip_loader(trained, role, options.clips, options.seed)
        with Meter(f"{run.name}: {role} clips", "clips", len(loader.dataset)) as meter:
            parts.append(trained.predict(loader, advance=meter.add))
    return _joined(parts)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Several evaluations of one model as one."""
    first = parts[0]
    columns = ("sample_ids", "domains", "roles", "labels", "skipped")
    return Predictions(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in columns),
        present={
            m: np.concatenate([p.present[m] for p in parts]) for m in first.present
        },
        logits={h: np.concatenate([p.logits[h] for p in parts]) for h in first.logits},
        classes=first.classes,
        facts=first.facts,
    )


# ------------------------------------------------------------- from the checkpoints


def _flatness(runs: list[Run], options: FigureOptions):
    gammas = options.gammas or _default_gammas(runs, options)

    def measure(run, trained, clips):
        total = 2 * len(gammas) * options.directions
        with Meter(f"{run.name}: flatness", "evaluations", total) as meter:
            return measure_flatness(
                trained, clips, gammas, directions=options.directions,
                seed=options.seed, by_filter=options.by_filter, advance=meter.add,
            )  # fmt: skip

    frame = _each(runs, options, ROLES, measure)
    name = "flatness_by_filter" if options.by_filter else "flatness"
    files = draw_flatness(frame, options.out / name, options.by_filter)
    summary = flatness_summary(frame)
    return files, summary[summary["gamma"] == max(gammas)]


def _default_gammas(runs: list[Run], options: FigureOptions) -> list[float]:
    if options.by_filter:
        return list(GAMMAS_BY_FILTER)
    norms = []
    for run in runs:
        trained = run.load(options.rule, options.data_root)
        norms.append(length(perturbed_parameters(trained.model)))
    return [RADIUS_SHARE * min(norms) * k / 5 for k in range(1, 6)]


def _landscape(runs: list[Run], options: FigureOptions):
    if options.through:
        frame = _landscape_through(runs, options)
        label = "distance in weight space"
    else:

        def measure(run, trained, clips):
            plane = random_plane(
                trained.model, options.radius, options.points, options.seed
            )
            return _over_plane(run.name, trained, clips, plane)

        frame = _each(runs, options, ["target"], measure)
        label = "filter-normalised direction"
    files = []
    for role, own in frame.groupby("role", sort=False):
        path = options.out / f"landscape_{role}"
        files += draw_landscape(own, path, label, options.surface)
    return files, None


def _over_plane(name, trained, clips, plane) -> pd.DataFrame:
    total = len(plane.xs) * len(plane.ys) + len(plane.corners)
    with Meter(f"{name}: landscape", "points", total) as meter:
        return measure_landscape(trained, clips, plane, meter.add)


def _landscape_through(runs: list[Run], options: FigureOptions) -> pd.DataFrame:
    loaded = {run.name: run.load(options.rule, options.data_root) for run in runs}
    weights = {name: moving_weights(t.model) for name, t in loaded.items()}
    plane = plane_through(weights, points=options.points)
    first, trained = runs[0], loaded[runs[0].name]
    stems = same_stems([t.model for t in loaded.values()])
    clips = {
        role: _held(trained, role, first, options, through_stems=stems)
        for role in options.roles or ["target"]
    }
    frame = _over_plane("through " + ", ".join(loaded), trained, clips, plane)
    return frame.assign(run="plane through three weights")


def _embeddings(runs: list[Run], options: FigureOptions):
    scores = []

    def measure(run, trained, clips):
        joined = HeldClips.joined(list(clips.values()))
        frame, found = measure_embeddings(
            trained, joined, options.perplexity, options.seed, options.neighbours
        )
        scores.append(dict(run=run.name) | found)
        return frame

    frame = _each(runs, options, ["target"], measure)
    table = pd.DataFrame(scores)
    files = draw_embeddings(frame, table, options.out / "embeddings")
    return [*files, _table(table, options.out / "embeddings_scores.csv")], table


def _shapley(runs: list[Run], options: FigureOptions):
    def measure(run, trained, clips):
        return pd.concat(
            measure_shapley(trained, held, options.resamples, options.seed)
            for held in clips.values()
        )

    frame = _each(runs, options, ["target"], measure)
    shares = frame[frame["quantity"] == "shapley"]
    table = shares.pivot(index=["role", "run"], columns="modalities", values="value")
    files = draw_shapley(frame, options.out / "shapley")
    return files, (100 * table).round(1).reset_index()


def _shift(runs: list[Run], options: FigureOptions):
    from .suites import shift  # with what an evaluation needs: seconds to import

    if set(options.roles or ["target"]) != {"target"}:
        raise UsageError("the modality shift is one of the target's test clips")
    frames, first = [], {}
    for run in runs:
        clean, variants = _shifted(run, options)
        _refuse_other_clips(first, run, clean.sample_ids.tolist())
        frames.append(shift.measure_shift(variants, clean).assign(run=run.name))
    frame = pd.concat(frames, ignore_index=True)
    files = shift.draw_shift(frame, options.out / "shift", by="run")
    fused = frame[frame["head"] == "fused"]
    table = fused.pivot(index=["shifted", "level"], columns="run", values="top1")
    return files, (100 * table).round(1).reset_index()


def _shifted(
    run: Run, options: FigureOptions
) -> tuple[Predictions, dict[tuple[str, float], Predictions]]:
    """What a run says of the clean clips, and with noise: by modality and level."""
    from .suites import Subject, shift

    subject = Subject(run.load(options.rule, options.data_root))
    levels = options.levels or shift.LEVELS
    todo = {None: subject.pipelines} | {
        key: subject.pipelines | {key[0]: pipeline}
        for key, pipeline in shift.pipelines(subject, levels, options.seed)
    }
    count = len(chosen_clips(len(subject.dataset), options.clips))
    found = {}
    with Meter(f"{run.name}: shift", "clips", count * len(todo)) as meter:
        for key, pipelines in todo.items():
            loader = clip_loader(
                subject.trained, "target", options.clips, options.seed,
                pipelines=pipelines,
            )  # fmt: skip
            found[key] = subject.trained.predict(loader, advance=meter.add)
    return found.pop(None), found


def _each(
    runs: list[Run],
    options: FigureOptions,
    roles: Sequence[str],
    measure: Callable[[Run, TrainedModel, Mapping[str, HeldClips]], pd.DataFrame],
) -> pd.DataFrame:
    """One measurement per run on the same clips, with a column run."""
    frames, first = [], {}
    for run in runs:
        trained = run.load(options.rule, options.data_root)
        clips = {
            role: _held(trained, role, run, options) for role in options.roles or roles
        }
        ids = [i for held in clips.values() for i in held.sample_ids.tolist()]
        _refuse_other_clips(first, run, ids)
        frames.append(measure(run, trained, clips).assign(run=run.name))
    return pd.concat(frames, ignore_index=True)


def _refuse_other_clips(first: dict, run: Run, ids: list[str]) -> None:
    """All runs of a figure are shown on the clips of the first, which is noted."""
    name, expected = first.setdefault("run", (run.name, ids))
    if ids != expected:
        raise UsageError(
            f"{name} and {run.name} are evaluated on different clips (another target "
            "or data set?): make a figure for each"
        )


def _held(
    trained: TrainedModel, role: str, run: Run, options: FigureOptions, **more
) -> HeldClips:
    title = f"{run.name}: reading {role} clips"
    with Meter(title, "clips", options.clips or 0) as meter:
        return HeldClips.read(
            trained, role, options.clips, options.seed, options.gigabytes,
            advance=meter.add, **more,
        )  # fmt: skip


def _table(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


KINDS: dict[str, Callable] = dict(
    curves=_curves,
    modalities=_modalities,
    flatness=_flatness,
    landscape=_landscape,
    embeddings=_embeddings,
    balance=_balance,
    shapley=_shapley,
    shift=_shift,
)
"""``{kind: function of the runs and the options}``."""
