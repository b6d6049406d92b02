"""Runs suites on a model, and leaves their tables and figures in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from ...engine import checkpoint_checks as checks
from ...errors import UsageError
from ...evaluation.predictions import Predictions
from ..trained import TrainedModel
from .base import Suite, Table
from .readings import CLEAN, Subject, predict_all


def refuse_leak(trained: TrainedModel, dataset: object, checkpoint: str) -> None:
    """Refuses to test as unseen what was trained on, as ``tools/test.py`` does.

    Args:
        trained: The model.
        dataset: That of the test data.
        checkpoint: For the message.

    Raises:
        CheckpointError: Naming what is wrong.
    """
    saved = trained.facts.get("experiment")
    if saved is None:
        print(
            "the checkpoint does not say which domains it was trained on, so that the "
            "target is unseen cannot be checked",
            file=sys.stderr,
        )
        return
    now = checks.experiment_of(trained.config, trained.model, dataset)
    what = f"{trained.config.filename or 'the config'} with {checkpoint}"
    checks.refuse_leak(saved, now, dataset.use, what)


def evaluate(
    trained: TrainedModel,
    suites: Sequence[Suite],
    out: Path,
    console: Console | None = None,
) -> dict[str, list[Table]]:
    """Reads what the suites need, then prints and writes what they find.

    Args:
        trained: The model.
        suites: What to evaluate.
        out: Folder: ``predictions/`` and, of every suite, its tables as CSV and its
            figures; ``summary.json``.
        console: Where to print; standard output if None.

    Returns:
        ``{suite: tables}``.

    Raises:
        UsageError: If the data are not unseen, a suite cannot be run, or the folder
            holds another evaluation.
    """
    _make(out)
    subject = Subject(trained)
    refuse_leak(trained, subject.dataset, trained.facts["checkpoint"])
    readings = [reading for suite in suites for reading in suite.readings(subject)]
    predictions = predict_all(subject, readings, out / "predictions")
    facts = trained.facts | dict(identity=subject.identity, clips=len(subject.dataset))
    return _report(suites, predictions, facts, out, console)


def evaluate_kept(
    path: Path, suites: Sequence[Suite], out: Path, console: Console | None = None
) -> dict[str, list[Table]]:
    """The same from predictions that a test or a grid has kept: nothing is read again.

    Args:
        path: File of :class:`.Predictions`, such as a run's
            ``predictions_source.npz``.
        suites: Those that need the clean data alone.
        out: As of :func:`evaluate`.
        console: As of :func:`evaluate`.

    Raises:
        UsageError: If there are no predictions, or a suite needs more than them.
    """
    if more := [s.name for s in suites if not s.needs_clean_alone()]:
        raise UsageError(
            f"{', '.join(more)}: kept predictions are of the clean data alone; give a "
            "config and a checkpoint"
        )
    try:
        kept = Predictions.load(path)
    except OSError as error:
        raise UsageError(f"--predictions: {error}") from error
    except ValueError as error:
        raise UsageError(
            f"--predictions: {path} holds none that can be read: give a file that "
            "tools/test.py --predictions, a grid or an evaluation has written"
        ) from error
    _make(out)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    facts = kept.facts | dict(identity=dict(predictions=digest), clips=len(kept))
    return _report(suites, {CLEAN: kept}, facts, out, console)


def _make(out: Path) -> None:
    try:  # not only after an hour of reading
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"--out {out}: {error}") from error


def _report(
    suites: Sequence[Suite],
    predictions: Mapping[str, Predictions],
    facts: Mapping,
    out: Path,
    console: Console | None,
) -> dict[str, list[Table]]:
    # A file or a pipe has no width of its own, and the tables need some.
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    found = {}
    for suite in suites:
        found[suite.name] = suite.report(predictions, out)
        for table in found[suite.name]:
            table.data.to_csv(out / f"{table.name}.csv", index=False)
            _print(table, console)
    _write_summary(out / "summary.json", facts, found)
    console.print(f"tables and figures: {out}", soft_wrap=True)
    return found


def _print(table: Table, console: Console) -> None:
    grid = Grid(title=table.title, title_justify="left")
    for column in table.shown:
        # Numbers, also as text with their intervals, to the right; names to the left.
        names = table.shown[column].astype(str).str.contains(r"^[^\W\d]").any()
        grid.add_column(str(column), justify="left" if names else "right")
    for row in table.shown.itertuples(index=False):
        grid.add_row(*(escape(str(value)) for value in row))
    console.print(grid)
    for note in table.notes:
        console.print(f"   {note}", highlight=False, soft_wrap=True)


def _write_summary(path: Path, facts: Mapping, found: dict[str, list[Table]]) -> None:
    """All numbers in one file; what it holds of other suites stays."""
    before = json.loads(path.read_text()) if path.exists() else {}
    same = before.get("identity") == facts["identity"]
    suites = (before["suites"] if same else {}) | {
        suite: {table.name: _records(table.data) for table in tables}
        for suite, tables in found.items()
    }
    content = dict(facts, suites=suites)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n")
    os.replace(part, path)


def _records(data: pd.DataFrame) -> list[dict]:
    """Rows as JSON values; not-a-number is null."""
    return json.loads(data.to_json(orient="records", double_precision=15))
