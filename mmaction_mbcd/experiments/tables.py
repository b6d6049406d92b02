"""Tables of a grid: means, deviations, intervals and what may be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ..analysis.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_test,
    paired_difference,
    supported_best,
)
from ..errors import UsageError
from ..evaluation.predictions import Predictions
from .experiment import Experiment, PlannedRun
from .run_folder import RunFolder

AVERAGE = "average"
"""The target that stands for the mean over all targets."""


@dataclass
class Cell:
    """What one method got right on one target, all its seeds.

    Attributes:
        seeds: ``S`` of them, in their order.
        correct: ``(S, N)`` bool.
        clips: ``(N,)`` ids; rows of the same clip have the same.
        epochs: Of the chosen checkpoints, one per seed.
        wanted: Seeds that the grid names.
        skipped: Clips that could not be read; they are not in ``N``.
    """

    seeds: list[int]
    correct: np.ndarray
    clips: np.ndarray
    epochs: list[int | None]
    wanted: int
    skipped: int = 0

    @property
    def clusters(self) -> np.ndarray | None:
        """For the statistics: None where every row is a clip of its own."""
        return None if len(set(self.clips)) == len(self.clips) else self.clips


@dataclass(frozen=True, order=True)
class Place:
    """A column: where it was trained, and on what it is tested.

    Attributes:
        sources: Joined by commas.
        target: The unseen domain; in domain the one that training left out.
    """

    sources: str
    target: str


Block = tuple[str, str]
"""Dataset and modalities, such as ``('hac', 'video audio')``: the rows and columns that
belong together."""


@dataclass
class Records:
    """All that the finished runs of a grid say under one rule.

    Attributes:
        cells: ``{(dataset, modalities): {method: {place: cell}}}``.
        rule: How checkpoints were chosen.
        evaluation: On which clips.
        head: Whose predictions; ``''`` is the fused head.
        names: Of the methods as people write them, such as ``{'rna_net': 'RNA-Net'}``.
        missing: Runs that are not there, in words.
        gaps: Their columns; an average without them would be of another thing.
        notes: What a reader must know: mixtures of versions, skipped clips.
    """

    cells: dict[Block, dict[str, dict[Place, Cell]]]
    rule: str
    evaluation: str
    head: str = ""
    names: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    gaps: dict[Block, list[Place]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_records(
    experiment: Experiment,
    rule: str = "source",
    evaluation: str = "target",
    head: str = "",
    read: Callable[[RunFolder, str, str], Predictions | None] = RunFolder.predictions,
) -> Records:
    """Reads the predictions of every run.

    Args:
        experiment: Its runs.
        rule: One that the grid selects by.
        evaluation: On which clips.
        head: ``''`` for the fused head, a modality, ``'student'``.
        read: Predictions of a folder by rule and evaluation; None if there are none.

    Raises:
        UsageError: If the grid has no such rule or evaluation, or no run is finished.
        ValueError: If runs of one cell were tested on different clips.
    """
    for name, value, known in (
        ("rule", rule, experiment.grid.select),
        ("evaluation", evaluation, experiment.grid.evaluate),
    ):
        if value not in known:
            raise UsageError(
                f"the grid has no {name} {value!r}; it has {', '.join(known)}. Add it "
                "to the grid and run it again: what is there is kept"
            )
    records = Records({}, rule, evaluation, head)
    found: dict[tuple[Block, str, Place], list[tuple[PlannedRun, Predictions]]] = {}
    absent: list[PlannedRun] = []
    runs = [r for r in experiment.runs if r.spec.purpose == "grid"]
    for run in runs:
        said = read(run.folder, rule, evaluation)
        if said is None:
            records.missing.append(_in_words(run))
            absent.append(run)
            continue
        if head and head not in said.logits:
            continue  # a method without that head
        for place, part in by_place(run, said, evaluation):
            key = (block_of(said, run), run.spec.name, place)
            found.setdefault(key, []).append((run, part))
        records.names.setdefault(run.spec.name, _name(said, run))
    if not found:
        raise UsageError(
            f"no run of {experiment.out} has predictions by rule {rule!r}"
            + (f" and head {head!r}" if head else "")
            + ": run it first (`status` says how far it is)"
        )
    for (block, method, place), parts in found.items():
        what = f"{method}, {place.sources} to {place.target}"
        alike = replace(parts[0][0].spec, seed=0)
        wanted = sum(replace(run.spec, seed=0) == alike for run in runs)
        cell = _cell(parts, head, wanted, what)
        records.cells.setdefault(block, {}).setdefault(method, {})[place] = cell
    for run in absent:
        _leave_room(records, run)
    records.notes += mixtures([run for run in runs if run.folder.known])
    records.notes += _skipped(records)
    return records


def _leave_room(records: Records, run: PlannedRun) -> None:
    """Makes row and column of a run that is not there, so that the gap shows.

    Of the other runs' blocks the one with its data set and modalities has it; sources
    and target are those of another run of the same place, or the run's own.
    """
    spec = run.spec
    wanted = " ".join(spec.modalities)
    blocks = [b for b in records.cells if b[0] == spec.dataset]
    block = next((b for b in blocks if not wanted or b[1] == wanted), None)
    if block is None:
        block = spec.dataset, wanted or "all"
    methods = records.cells.setdefault(block, {})
    records.names.setdefault(spec.name, spec.name)
    targets = ", ".join(spec.target)
    places = {p for own in methods.values() for p in own if p.target == targets}
    sources = ", ".join(spec.sources) or "all others"
    place = next((p for p in places if not spec.sources or p.sources == sources),
                 Place(sources, targets or "all others"))  # fmt: skip
    methods.setdefault(spec.name, {})
    records.gaps.setdefault(block, []).append(place)


def _in_words(run: PlannedRun) -> str:
    spec = run.spec
    parts = (spec.dataset, spec.name, "-".join(spec.modalities), spec.place)
    text = f"{' '.join(filter(None, parts))}, seed {spec.seed}"
    return f"{text} ({run.folder.state})"


def block_of(said: Predictions, run: PlannedRun) -> Block:
    """The block whose rows a run's predictions belong to."""
    experiment = said.facts.get("experiment") or {}
    modalities = experiment.get("modalities") or said.modalities
    return run.spec.dataset, " ".join(modalities)


def _name(said: Predictions, run: PlannedRun) -> str:
    name = (said.facts.get("experiment") or {}).get("method") or run.spec.method
    return f"{name} ({run.spec.variant})" if run.spec.variant else name


def by_place(
    run: PlannedRun, said: Predictions, evaluation: str
) -> Iterator[tuple[Place, Predictions]]:
    """The predictions by target; in domain they are of the sources, all together."""
    experiment = said.facts.get("experiment") or {}
    sources = ", ".join(experiment.get("sources") or run.spec.sources)
    if evaluation == "in_domain":
        target = ", ".join(experiment.get("target") or run.spec.target)
        yield Place(sources, target), said
        return
    for domain in dict.fromkeys(said.domains):
        yield Place(sources, str(domain)), said.select(said.domains == domain)


def _cell(
    parts: Sequence[tuple[PlannedRun, Predictions]], head: str, wanted: int, what: str
) -> Cell:
    parts = sorted(parts, key=lambda part: part[0].spec.seed)
    first = parts[0][1]
    for run, said in parts:
        same = len(said) == len(first) and np.array_equal(
            said.sample_ids, first.sample_ids
        )
        if not same:
            raise ValueError(
                f"{what}: seed {run.spec.seed} was tested on other clips (N = "
                f"{len(said)}) than seed {parts[0][0].spec.seed} (N = {len(first)}): "
                "the data changed in between; run the grid again into another folder"
            )
    # A clip that one run could not read counts for none, so that all compare.
    known = np.all([said.known(head) for _, said in parts], axis=0)
    return Cell(
        seeds=[run.spec.seed for run, _ in parts],
        correct=np.stack([said.correct(head)[known] for _, said in parts]),
        clips=first.sample_ids[known],
        epochs=[said.facts.get("epoch") for _, said in parts],
        wanted=wanted,
        skipped=int(np.any([said.skipped for _, said in parts], axis=0).sum()),
    )


def _skipped(records: Records) -> Iterator[str]:
    most = max(
        (cell.skipped, f"{method} on {place.target}")
        for methods in records.cells.values()
        for method, places in methods.items()
        for place, cell in places.items()
    )
    if most[0]:
        yield (
            f"Up to {most[0]} test clips of a cell could not be read ({most[1]}); they "
            "count for no seed of it."
        )


def mixtures(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Of which revisions, versions and machines runs are, where there are several."""
    starts = [start for run in runs for start in run.folder.noted.get("starts", [])]
    for name, title in (("revision", "revisions of the code"), ("gpu", "GPUs"),
                        ("processor", "processors")):  # fmt: skip
        values = {start.get(name) for start in starts}
        if name == "gpu":
            values = {value or "none" for value in values}
        values -= {None, ""}
        if len(values) > 1:
            yield f"Runs are of several {title}: {', '.join(sorted(values))}."
    versions: dict[str, set[str]] = {}
    for start in starts:
        for name, version in (start.get("versions") or {}).items():
            versions.setdefault(name, set()).add(version)
    for name, several in versions.items():
        if len(several) > 1:
            named = ", ".join(sorted(several))
            yield f"Runs are of several versions of {name}: {named}."


# ------------------------------------------------------------------------ numbers


def summarise(
    records: Records, reference: str | None = None, order: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per method and column: all that a table may show, accuracies in percent.

    Args:
        records: From :func:`read_records`.
        reference: The method that the others are compared with; none if None.
        order: Methods in the order of the rows; as found if empty.

    Returns:
        Columns dataset, modalities, method (its config), name, sources, target
        (:data:`AVERAGE` for the mean over a block's targets), N (clips, of all targets
        in an average), seeds, wanted (seeds of the grid), mean, std (over seeds, n - 1;
        NaN with one), low, high (95 %), covers (what the interval is about),
        difference,
        difference_low, difference_high, p (paired), difference_covers, p_holm (over the
        methods of the column), mcnemar (over clips, of these trainings), best and
        second (bool), best_supported, second_supported, p_next (of the best against
        the one nearest to it, by Holm), rule, evaluation, epochs.

    Raises:
        UsageError: If no run is of the reference.
    """
    known = list(dict.fromkeys(m for block in records.cells.values() for m in block))
    there = {m for block in records.cells.values() for m, own in block.items() if own}
    if reference is not None and reference not in there:
        raise UsageError(
            f"the reference {reference!r} has no finished run; there are "
            f"{', '.join(m for m in known if m in there)}"
        )
    order = [m for m in (order or known) if m in known]
    rows = []
    for block, methods in records.cells.items():
        methods = {m: methods[m] for m in order if m in methods}
        for target, places in _columns(methods, records.gaps.get(block, ())).items():
            rows += _column(block, target, places, methods, reference)
    frame = pd.DataFrame(rows)
    frame.insert(3, "name", [records.names[m] for m in frame["method"]])
    return frame.assign(rule=records.rule, evaluation=records.evaluation)


def _columns(
    methods: Mapping[str, Mapping[Place, Cell]], gaps: Sequence[Place]
) -> dict[tuple[str, str], list[Place]]:
    """``{(sources, target): places}``, the average last."""
    there = [p for own in methods.values() for p in own]
    places = list(dict.fromkeys([*there, *gaps]))
    columns = {(p.sources, p.target): [p] for p in places}
    if len(places) > 1:
        columns["", AVERAGE] = places
    return columns


def _column(
    block: Block,
    head: tuple[str, str],
    places: Sequence[Place],
    methods: Mapping[str, Mapping[Place, Cell]],
    reference: str | None,
) -> list[dict]:
    # An average over other targets would be of another thing.
    whole = {m: [own[p] for p in places] for m, own in methods.items()
             if all(p in own for p in places)}  # fmt: skip
    rows = []
    for method in methods:
        row = dict(dataset=block[0], modalities=block[1], method=method)
        row |= dict(sources=head[0], target=head[1])
        rows.append(row | (_numbers(whole[method]) if method in whole else _NOTHING))
    compared = _on_common_clips(whole)
    if reference in compared:
        _compare(rows, compared, reference)
    _rank(rows, compared)
    return rows


def _on_common_clips(
    whole: Mapping[str, Sequence[Cell]],
) -> dict[str, Sequence[Cell]]:
    """The cells on the clips that all methods could read, for comparisons.

    Cells with less than half of their clips in common are of other data, and stay.
    """
    columns = []
    for cells in zip(*whole.values(), strict=True):
        keys = [_numbered(cell.clips) for cell in cells]
        common = set(keys[0]).intersection(*keys[1:])
        if 2 * len(common) < max(map(len, keys)):
            columns.append(cells)
            continue
        masks = [np.array([key in common for key in own]) for own in keys]
        columns.append(
            [
                replace(cell, correct=cell.correct[:, mask], clips=cell.clips[mask])
                for cell, mask in zip(cells, masks, strict=True)
            ]
        )
    return dict(zip(whole, zip(*columns, strict=True), strict=True)) if whole else {}


def _numbered(clips: np.ndarray) -> list[tuple[str, int]]:
    """Each clip's id with how often it stood before: rows of one clip repeat it."""
    seen: Counter[str] = Counter()
    numbered = []
    for clip in map(str, clips):
        numbered.append((clip, seen[clip]))
        seen[clip] += 1
    return numbered


_NOTHING = dict(N=0, seeds=0, wanted=0, mean=np.nan, std=np.nan, low=np.nan,
                high=np.nan, covers="", epochs="")  # fmt: skip


def _numbers(cells: Sequence[Cell]) -> dict:
    estimate = bootstrap_interval(
        [c.correct for c in cells], [c.clusters for c in cells]
    )
    return dict(
        N=sum(c.correct.shape[1] for c in cells),
        seeds=min(len(c.seeds) for c in cells),
        wanted=max(c.wanted for c in cells),
        mean=100 * estimate.mean,
        std=100 * _deviation(cells),
        low=100 * estimate.low,
        high=100 * estimate.high,
        covers=estimate.covers,
        epochs="; ".join(" ".join(map(str, c.epochs)) for c in cells),
    )


def _deviation(cells: Sequence[Cell]) -> float:
    """Of the seeds' accuracies, n - 1; of several targets that of the seeds' averages.

    NaN with one seed, or where targets have different ones.
    """
    if len(cells[0].seeds) < 2 or any(c.seeds != cells[0].seeds for c in cells):
        return float("nan")
    means = np.mean([c.correct.mean(axis=1) for c in cells], axis=0)
    return float(np.std(means, ddof=1))


def _matched(cells: Sequence[Cell], others: Sequence[Cell]) -> bool:
    """Whether two methods were tested on the same clips."""
    return all(
        np.array_equal(a.clips, b.clips) for a, b in zip(cells, others, strict=True)
    )


def _compare(
    rows: Sequence[dict], whole: Mapping[str, Sequence[Cell]], reference: str
) -> None:
    base = whole[reference]
    clusters = [c.clusters for c in base]
    arrays = [c.correct for c in base]
    for row in rows:
        cells = whole.get(row["method"])
        if cells is None or row["method"] == reference or not _matched(cells, base):
            continue
        own = [c.correct for c in cells]
        found = paired_difference(own, arrays, clusters)
        row |= dict(
            reference=reference,
            difference=100 * found.difference,
            difference_low=100 * found.low,
            difference_high=100 * found.high,
            p=found.p_value,
            difference_covers=found.covers,
        )
        if len(own) == 1:
            row["mcnemar"] = mcnemar_test(own[0], arrays[0], clusters[0])
    adjusted = holm({r["method"]: r["p"] for r in rows if "p" in r})
    for row in rows:
        if "p" in row:
            row["p_holm"] = adjusted[row["method"]]


def _rank(rows: Sequence[dict], whole: Mapping[str, Sequence[Cell]]) -> None:
    for row in rows:
        row |= dict(best=False, second=False, best_supported=False,
                    second_supported=False, p_next=np.nan)  # fmt: skip
    first = next(iter(whole.values()), None)
    if len(whole) < 2 or not all(_matched(cells, first) for cells in whole.values()):
        return
    ranking = supported_best(
        {m: [c.correct for c in cells] for m, cells in whole.items()},
        [c.clusters for c in first],
    )
    # With one seed the test is over clips alone, and says nothing of another training.
    trained = min(len(c.seeds) for cells in whole.values() for c in cells) > 1
    for row in rows:
        if row["method"] == ranking.best:
            supported = trained and ranking.best_supported
            p_next = max(ranking.p_values.values())
            row |= dict(best=True, best_supported=supported, p_next=p_next)
        elif row["method"] == ranking.second:
            supported = trained and ranking.second_supported
            row |= dict(second=True, second_supported=supported)
