"""A grid as one HTML page that needs no server, no network and no other file.

:func:`gather` reads the folder, :func:`render` makes the page. The numbers are those of
:mod:`.tables`; curves, times, configs and failures come from the runs' folders, and a
folder that is damaged only lacks them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from .. import __version__
from ..analysis.curves import read_curves
from ..errors import UsageError
from ..evaluation.predictions import Predictions
from ..progress import duration
from . import status, table_text, tables
from .config_differences import Differences
from .experiment import GRID_FILE, Experiment, PlannedRun
from .grid import LEAKING, RunSpec
from .run_folder import STATES, RunFolder

_ROW = (
    "dataset", "modalities", "method", "name", "sources", "target", "N", "seeds",
    "wanted", "mean", "std", "low", "high", "covers", "epochs", "best", "second",
    "best_supported", "second_supported", "p_next",
)  # fmt: skip
_MAY_LACK = ("mean", "std", "low", "high", "p_next")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "p_holm", "mcnemar")
_MOST_CLASSES = 40  # of a confusion matrix that can be read
_LOG_LINES = 12  # of a failed run
_FIGURE_BYTES, _ALL_FIGURES_BYTES = 500_000, 4_000_000

_EVALUATION_NAMES = {"target": "unseen domains", "in_domain": "in domain"}


@dataclass(frozen=True)
class _Seen:
    """A run, and what its folder's small files held as they were read."""

    run: PlannedRun
    known: dict
    noted: dict
    state: str
    chosen: dict[str, int | None]  # epoch by rule

    @classmethod
    def of(cls, run: PlannedRun, rules: Sequence[str]) -> _Seen:
        chosen = {rule: run.folder.results(rule).get("epoch") for rule in rules}
        folder = run.folder
        return cls(run, folder.known, folder.noted, folder.state, chosen)

    @property
    def spec(self) -> RunSpec:
        return self.run.spec

    @property
    def seconds(self) -> dict[str, float]:
        """By tool."""
        return self.noted.get("seconds") or {}


@dataclass
class _Reader:
    """Reads each file of predictions once; a damaged one is as none, and is named."""

    kept: dict[Path, Predictions | None] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def __call__(
        self, folder: RunFolder, rule: str, evaluation: str
    ) -> Predictions | None:
        path = folder.predictions_file(rule, evaluation)
        if path not in self.kept:
            try:
                self.kept[path] = folder.predictions(rule, evaluation)
            except (OSError, ValueError, zlib.error) as error:
                self.kept[path] = None
                self.damaged.append(f"{folder.path.name}/{path.name}: {error}")
        return self.kept[path]


def gather(
    experiment: Experiment,
    reference: str | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict:
    """All that the page shows, as JSON: no NaN, no tuples, keys of text.

    Args:
        experiment: Its runs, whatever their state.
        reference: The method that is compared with first, and the only one that heads
            other than the fused one are compared with; the grid's if None, or else the
            first that has results.
        advance: Called behind each rule and evaluation.

    Raises:
        UsageError: If the grid has no such reference.
    """
    grid = experiment.grid
    methods = list(dict.fromkeys(run.spec.name for run in experiment.runs))
    if reference is not None and reference not in methods:
        raise UsageError(
            f"the reference {reference!r} is no method of the grid; there are "
            f"{', '.join(methods)}"
        )
    seen = [_Seen.of(run, grid.select) for run in experiment.runs]
    found, classes, damaged = [], [], []
    for evaluation, rule in product(grid.evaluate, grid.select):
        read = _Reader()
        own = list(_tables(experiment, rule, evaluation, read, reference))
        found += own
        classes += _classes(seen, rule, evaluation, read)
        damaged += read.damaged
        advance()
    names = _names(seen, found)
    folder = experiment.out / "figures"
    pictures, large = _figures(folder)
    data = dict(
        title=experiment.out.resolve().name,
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        grid=(experiment.out / GRID_FILE).read_text(encoding="utf-8"),
        datasets=list(dict.fromkeys(s.spec.dataset for s in seen)),
        methods=[dict(method=m, name=n) for m, n in names.items()],
        seeds=list(grid.seeds),
        rules=[_rule(rule) for rule in grid.select],
        evaluations=[dict(key=e, name=_EVALUATION_NAMES[e]) for e in grid.evaluate],
        reference=reference or grid.reference or next(_compared(found), None),
        counts={s: n for s in STATES if (n := Counter(x.state for x in seen)[s])},
        warnings=[
            *_leaks(grid.select),
            *_warnings(seen),
            *_damage(damaged),
            *_strangers(experiment),
        ],
        findings=list(_findings(found)),
        tables=found,
        classes=classes,
        curves=[c for i, s in enumerate(seen) if (c := _curve(i, s)) is not None],
        runs=[_run(s, names, experiment.out) for s in seen],
        failures=[_failure(s, experiment.out) for s in seen if s.state in _BROKEN],
        costs=_costs(seen, names),
        configs=list(_configs(seen, names)),
        environments=_environments(seen),
        clips=_clips(seen),
        figures=list(_pictures(pictures, folder)),
        large_figures=[str(stem.relative_to(folder)) for stem in large],
    )
    return _as_json(data)


_BROKEN = ("failed", "interrupted")


def _rule(rule: str) -> dict:
    return dict(key=rule, text=table_text.RULE_NAMES[rule], leaking=rule in LEAKING)


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


# -------------------------------------------------------------------------- results


def _tables(
    experiment: Experiment,
    rule: str,
    evaluation: str,
    read: _Reader,
    reference: str | None,
) -> Iterator[dict]:
    """One per head; the fused head's has the differences to every method."""
    heads = [""]
    for run in experiment.runs:
        if said := read(run.folder, rule, evaluation):
            heads += said.logits
    for head in dict.fromkeys(heads):
        shown = dict(rule=rule, evaluation=evaluation, head=head)
        try:
            records = tables.read_records(experiment, rule, evaluation, head, read)
        except (UsageError, ValueError) as error:
            yield shown | dict(problem=str(error), rows=[], differences={}, missing=[])
            continue
        yield shown | _table(records, reference or experiment.grid.reference)


def _table(records: tables.Records, reference: str | None) -> dict:
    frame = tables.summarise(records)
    methods = list(dict.fromkeys(frame.loc[frame["seeds"] > 0, "method"]))
    first = reference if reference in methods else methods[0]
    compared = {}
    for method in [first] if records.head else methods:
        own = tables.summarise(records, method)
        if table_text.has_reference(own):
            own = own.reindex(columns=_DIFFERENCE)
            compared[method] = own.to_numpy().tolist()
    return dict(
        problem="",
        caption=table_text.caption(frame, intervals=False),
        columns=list(_ROW),
        rows=frame.reindex(columns=_ROW).astype(object).to_numpy().tolist(),
        differences=compared,
        missing=records.missing,
        # Mixtures stand on top of the page already.
        notes=[n for n in records.notes if not n.startswith("Runs are of several")],
    )


def _compared(found: Sequence[Mapping]) -> Iterator[str]:
    """The methods that others are compared with."""
    for table in found:
        yield from table["differences"]


def _frame(table: Mapping) -> pd.DataFrame:
    """The rows of a table, as :func:`.tables.summarise` had them."""
    frame = pd.DataFrame(table["rows"], columns=table["columns"])
    frame = frame.astype(dict.fromkeys(_MAY_LACK, float))  # NaN again where it was
    return frame.assign(rule=table["rule"], evaluation=table["evaluation"])


def _findings(found: Sequence[Mapping]) -> Iterator[dict]:
    """The best method of each block, by the first rule, and whether it is set apart."""
    if not found or found[0]["problem"]:
        return
    frame = _frame(found[0])
    for (dataset, modalities), block in frame.groupby(
        ["dataset", "modalities"], sort=False
    ):
        last = block.iloc[-1]
        column = block[(block["target"] == last["target"])
                       & (block["sources"] == last["sources"])]  # fmt: skip
        best = column[column["best"].astype(bool)]
        if best.empty:
            continue
        row = best.iloc[0]
        p_next = row["p_next"]
        yield dict(
            dataset=dataset,
            modalities=modalities,
            target=row["target"],
            name=row["name"],
            mean=row["mean"],
            low=row["low"],
            high=row["high"],
            supported=row["best_supported"],
            p="" if pd.isna(p_next) else table_text.p_text(p_next),
        )


def _names(seen: Sequence[_Seen], found: Sequence[Mapping]) -> dict[str, str]:
    """Of all methods, in the grid's order: as people write them."""
    names = {s.spec.name: s.spec.name for s in seen}
    for table in found:
        for row in table["rows"]:
            names[row[_ROW.index("method")]] = row[_ROW.index("name")]
    return names


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many clips of each class went to each.

    Args:
        labels: (N,) classes; -1 for a clip that does not count.
        predicted: (N,) likewise.
        classes: C.

    Returns:
        (C, C) counts, a row per true class.
    """
    known = (labels >= 0) & (predicted >= 0)
    pairs = labels[known] * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


_CLASS_KEY = ("dataset", "modalities", "sources", "target", "method")


def _classes(
    seen: Sequence[_Seen], rule: str, evaluation: str, read: _Reader
) -> list[dict]:
    """Confusions of the fused head, the seeds' counts added."""
    counts: dict[tuple, np.ndarray] = {}
    names: dict[tuple, tuple[str, ...]] = {}
    for run in (s.run for s in seen if s.spec.purpose == "grid"):
        said = read(run.folder, rule, evaluation)
        if said is None or "" not in said.logits:
            continue
        block = tables.block_of(said, run)
        for place, part in tables.by_place(run, said, evaluation):
            key = (*block, place.sources, place.target, run.spec.name)
            own = confusion(part.labels, part.predicted(), len(said.classes))
            if names.setdefault(key, said.classes) == said.classes:
                counts[key] = counts.get(key, 0) + own
    return [
        dict(
            zip(_CLASS_KEY, key, strict=True),
            rule=rule,
            evaluation=evaluation,
            classes=names[key],
            clips=matrix.sum(1).tolist(),
            right=matrix.diagonal().tolist(),
            matrix=matrix.tolist() if len(matrix) <= _MOST_CLASSES else None,
        )
        for key, matrix in counts.items()
    ]


# --------------------------------------------------------------------------- curves

_CURVE = re.compile(r"(student/)?(source|target)/(?:(\w+)/)?top1")


def _curve(index: int, seen: _Seen) -> dict | None:
    """Accuracies over epochs in percent, by role and head; None without validation."""
    try:
        frame = read_curves(seen.run.folder.path)
    except (OSError, ValueError, KeyError):
        return None
    roles: dict[str, dict[str, list]] = {"source": {}, "target": {}}
    for column in frame:
        named = _CURVE.fullmatch(column)
        # Domains have an N of their own, modalities share that of the role.
        if not named or (named[3] and f"{column.removesuffix('top1')}N" in frame):
            continue
        head = "/".join(filter(None, ((named[1] or "").rstrip("/"), named[3])))
        roles[named[2]][head] = (100 * frame[column]).tolist()
    return dict(run=index, epochs=list(frame.index), chosen=seen.chosen, **roles)


# ----------------------------------------------------------------------------- runs


def _place(spec: RunSpec) -> str:
    """``'to street'``, ``'from studio to street'``, ``'from studio'``."""
    sources, target = ", ".join(spec.sources), ", ".join(spec.target)
    words = ("from " + sources if sources else "", "to " + target if target else "")
    return " ".join(filter(None, words))


def _group(spec: RunSpec) -> str:
    """The runs whose curves belong side by side."""
    return ", ".join(
        filter(None, (spec.dataset, " ".join(spec.modalities), _place(spec)))
    )


def _run(seen: _Seen, names: Mapping[str, str], out: Path) -> dict:
    spec = seen.spec
    return dict(
        dataset=spec.dataset,
        method=spec.name,
        name=names[spec.name],
        modalities=" ".join(spec.modalities),
        place=_place(spec),
        group=_group(spec),
        purpose=spec.purpose,
        seed=spec.seed,
        state=seen.state,
        attempts=seen.noted.get("attempts", 0),
        chosen=seen.chosen,
        unavailable=seen.noted.get("unavailable") or [],
        minutes=sum(seen.seconds.values()) / 60 or None,
        folder=_relative(seen.run.folder.path, out),
        digest=seen.run.digest,
    )


def _relative(path: Path, out: Path) -> str:
    return str(path.relative_to(out))


def _failure(seen: _Seen, out: Path) -> dict:
    phase = seen.noted.get("phase") or "train"
    log = seen.run.folder.path / f"{phase}.log"
    return dict(
        run=status.title(seen.run),
        state=seen.state,
        phase=phase,
        attempts=seen.noted.get("attempts", 0),
        error=seen.noted.get("error") or "",
        log=_relative(log, out),
        tail=_tail(log),
    )


def _tail(log: Path) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 8000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line[:300] for line in lines[-_LOG_LINES:])


def _costs(seen: Sequence[_Seen], names: Mapping[str, str]) -> list[dict]:
    """Time of finished runs, by dataset and method."""
    runs: dict[tuple[str, str], list[_Seen]] = {}
    for each in seen:
        if each.state == "finished" and each.seconds.get("train"):
            runs.setdefault((each.spec.dataset, each.spec.name), []).append(each)
    costs = []
    for (dataset, method), own in runs.items():
        train = np.array([s.seconds["train"] for s in own]) / 60
        test = np.array([sum(s.seconds.values()) for s in own]) / 60 - train
        costs.append(
            dict(
                dataset=dataset,
                name=names[method],
                runs=len(own),
                train=train.mean(),
                shortest=train.min(),
                longest=train.max(),
                test=test.mean(),
                hours=(train + test).sum() / 60,
            )
        )
    return costs


# ------------------------------------------------------- what was run, and on what


def _configs(seen: Sequence[_Seen], names: Mapping[str, str]) -> Iterator[dict]:
    """The methods' settings, by dataset and chosen modalities."""
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    overrides: dict[tuple[str, str], dict[tuple[str, ...], dict[str, None]]] = {}
    for each in seen:
        config = each.known.get("config")
        if isinstance(config, dict) and each.spec.purpose == "grid":
            key = each.spec.dataset, " ".join(each.spec.modalities)
            same = overrides.setdefault(key, {}).setdefault(each.spec.settings, {})
            same[names[each.spec.name]] = None
            own = groups.setdefault(key, {}).setdefault(names[each.spec.name], [])
            own.append(config)
    for (dataset, modalities), configs in groups.items():
        found = Differences.between(configs)
        yield dict(
            dataset=dataset,
            modalities=modalities,
            methods=found.methods,
            overrides=[
                dict(methods=list(methods), settings=settings)
                for settings, methods in overrides[dataset, modalities].items()
                if settings
            ],
            common=found.common,
            differing=found.differing,
            by_run=found.by_run,
        )


def _environments(seen: Sequence[_Seen]) -> list[dict]:
    """What runs were started on, each with its number of runs; the commonest first."""
    found: dict[str, set[int]] = {}
    for index, each in enumerate(seen):
        for start in each.noted.get("starts") or []:
            versions = start.get("versions") or {}
            facts = {k: v for k, v in start.items() if k not in ("versions", "host")}
            text = json.dumps(facts | versions, sort_keys=False, default=str)
            found.setdefault(text, set()).add(index)
    return [
        dict(facts=json.loads(text), runs=len(runs))
        for text, runs in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _clips(seen: Sequence[_Seen]) -> list[dict]:
    """Number and hash of the annotations, by dataset and place."""
    found: dict[tuple, None] = {}
    for each in seen:
        for use, facts in (each.known.get("data") or {}).items():
            if each.spec.purpose == "grid":
                key = each.spec.dataset, _place(each.spec), use
                found[(*key, facts.get("N"), str(facts.get("sha256"))[:12])] = None
    return [
        dict(zip(("dataset", "place", "use", "N", "sha256"), key, strict=True))
        for key in found
    ]


def _leaks(rules: Sequence[str]) -> Iterator[str]:
    for rule in rules:
        if rule in LEAKING:
            yield (
                f"The rule {rule} chooses checkpoints by the target's own labels: it "
                "shows a bound, and compares with no method that has not seen them."
            )


def _warnings(seen: Sequence[_Seen]) -> Iterator[str]:
    """Mixtures that a reader must know of."""
    yield from tables.mixtures([s.run for s in seen if s.known])
    if any(
        str(start.get("revision", "")).endswith("+")
        for s in seen
        for start in s.noted.get("starts") or []
    ):
        yield (
            "Runs were started from a checkout with changes that are not committed "
            "(revisions with a +): the revision alone does not give them again."
        )
    columns = Counter((c["dataset"], c["place"], c["use"]) for c in _clips(seen))
    for (dataset, place, use), several in columns.items():
        if several > 1:
            yield (
                f"{dataset}, {place}: runs have {several} different sets of {use} "
                "annotations."
            )


def _damage(damaged: Sequence[str]) -> Iterator[str]:
    for each in damaged:
        yield f"Damaged, and left out: {each}"


def _strangers(experiment: Experiment) -> Iterator[str]:
    if strangers := list(experiment.strangers()):
        yield (
            f"Not of this grid (an earlier config's, perhaps), and not on this page: "
            f"{len(strangers)} of the folders in runs, such as {strangers[0].name}."
        )


_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}


def _figures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures that the page has room for, and what it has none for.

    Returns:
        Files, of SVG and PNG the smaller one; paths without suffix.
    """
    left = _ALL_FIGURES_BYTES
    paths = sorted(p for p in folder.rglob("*") if p.suffix in _PICTURES)
    paths.sort(key=lambda path: path.stat().st_size)
    smallest: dict[Path, Path] = {}
    for path in paths:
        smallest.setdefault(path.with_suffix(""), path)
    chosen, large = [], []
    for stem, path in smallest.items():
        size = path.stat().st_size
        if size <= min(left, _FIGURE_BYTES):
            chosen.append(path)
            left -= size
        else:
            large.append(stem)
    return sorted(chosen), sorted(large)


def _pictures(paths: Sequence[Path], folder: Path) -> Iterator[dict]:
    for path in paths:
        content = base64.b64encode(path.read_bytes()).decode()
        address = f"data:{_PICTURES[path.suffix]};base64,{content}"
        yield dict(name=str(path.with_suffix("").relative_to(folder)), address=address)


# ---------------------------------------------------------------------------- page

_FOR_SCRIPT = ("methods", "rules", "evaluations", "seeds", "reference", "tables",
               "classes", "curves", "runs")  # fmt: skip


def render(data: Mapping) -> str:
    """The page: one HTML document with everything in it.

    A policy in it forbids every request, and every script but its own.

    Args:
        data: From :func:`gather`.
    """
    folder = resources.files(__package__) / "report_page"
    style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("style.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda n: (folder / n).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment.get_template("page.html").render(
        data,
        style=Markup(style),
        script=Markup(script),
        script_digest=digest,
        payload=_payload({key: data[key] for key in _FOR_SCRIPT}),
        static_tables=list(_static_tables(data)),
    )


def _payload(data: Mapping) -> Markup:
    """JSON as the text of a script element."""
    text = json.dumps(_short(data), allow_nan=False, separators=(",", ":"))
    for letter in "<>&":  # or data could end the element
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _short(value: object) -> object:
    """Six digits are more than the page shows."""
    if isinstance(value, Mapping):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _static_tables(data: Mapping) -> Iterator[dict]:
    """The fused head's tables, for readers without scripts."""
    for table in data["tables"]:
        if table["head"]:
            continue
        if table["problem"]:
            yield dict(table, title="", layout=None)
            continue
        for layout in table_text.Layout.of(_frame(table)):
            text = table_text.caption(layout.frame)
            yield dict(table, title=layout.title, layout=layout, caption=text)
