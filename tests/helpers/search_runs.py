"""Folders of trials of a search, as finished runs leave them."""

import json
from pathlib import Path

from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.run_folder import write_json
from tests_support import ROOT

CONFIGS = ROOT / "configs" / "mbcd"


def planned(out, **keys):
    """An experiment on HAC; neither configs nor data are resolved."""
    grid = Grid.of(dict(datasets=["hac"], targets=["human"]) | keys)
    experiment = Experiment(grid, Path(out), ROOT)
    experiment.runs = [
        experiment._planned(spec, f"{number:064x}")
        for number, spec in enumerate(grid.specs(CONFIGS))
    ]
    experiment.write()
    return experiment


def finish(folder, curve, state="finished", column="source/top1", target=None):
    """Notes that a run ended, with an accuracy for each epoch."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.note(state=state, seconds=dict(train=10.0))
    rows = [
        {"source/top1": value, column: value, "step": epoch}
        for epoch, value in enumerate(curve, 1)
    ]
    logs = folder.path / "20260101_000000" / "vis_data"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "scalars.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    if target is not None:
        metrics = {"target/top1": target}
        write_json(folder.results_file("source"), dict(metrics=metrics))
