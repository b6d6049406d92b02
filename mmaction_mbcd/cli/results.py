"""What a run leaves: its checkpoints named, its metrics printed and written."""

import json
import math
import numbers
import os
import os.path as osp
from collections.abc import Mapping

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from rich.console import Console
from rich.table import Table

from ..engine import checkpoint_checks as checks
from ..evaluation import PredictionFile


@master_only
def announce_checkpoints(runner: Runner) -> None:
    """Prints where the best checkpoint, or else the last, lies."""
    found = {
        path
        for key, path in runner.message_hub.runtime_info.items()
        if key.startswith("best_ckpt") and path and osp.isfile(path)
    }
    for path in sorted(found):
        print(f"Best checkpoint: {path}")
    if not found:
        last = find_latest_checkpoint(runner.work_dir)
        print(f"Last checkpoint: {last}" if last else "No checkpoint was written.")


class CheckpointMeta(Hook):
    """Keeps what the loaded checkpoint says about the run that wrote it.

    A :class:`.PredictionFile` among the test's metrics gets it too.

    Args:
        known: What is known beside, such as the checkpoint's path.

    Attributes:
        facts: ``known``, and ``seed``, ``epoch`` and ``iter``; ``experiment`` (method,
            dataset, sources, target, modalities, classes); and ``weights_loaded``, how
            many weights matched, were missing, unexpected or of another shape. None
            where the checkpoint does not say.
    """

    priority = "LOWEST"  # behind the hook that compares the weights

    def __init__(self, **known: object) -> None:
        self.facts = known

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Notes them.

        Raises:
            CheckpointError: If the weights do not fit.
        """
        meta = checkpoint.get("meta") or {}
        names = ("seed", "epoch", "iter", "experiment")
        self.facts |= {name: meta.get(name) for name in names}
        fits = [getattr(hook, "loaded", None) for hook in runner.hooks]
        fit = next((fit for fit in fits if fit is not None), None)
        if fit is None:  # a config with MMEngine's own hook
            weights = checkpoint.get("state_dict", checkpoint)
            fit = checks.fit(checks.module_of(runner), weights)
            what = f"{runner.cfg.filename} with {runner._load_from}"
            checks.refuse_other_weights(
                fit, what, bool(runner.cfg.get("allow_partial"))
            )
        self.facts["weights_loaded"] = fit.counts

    def before_test(self, runner: Runner) -> None:
        """Hands them on."""
        for metric in runner.test_loop.evaluator.metrics:
            if isinstance(metric, PredictionFile):
                metric.facts |= _plain(self.facts)


def _plain(value: object) -> object:
    """A JSON value: numbers of any library as Python's; not-a-number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


@master_only
def write_results(path: str, metrics: Mapping[str, object], **facts: object) -> None:
    """Writes ``metrics`` and what is known about the run as JSON, all or nothing.

    ``N`` is the number of samples, for each group that the metrics count
    (``{'target': 120}`` from ``target/N``).
    """
    counts = {
        key.rpartition("/")[0]: value
        for key, value in metrics.items()
        if key.rpartition("/")[2] == "N"
    }
    content = _plain({**facts, "N": counts, "metrics": metrics})
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    part = f"{path}.part"
    with open(part, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    os.replace(part, path)


@master_only
def print_results(metrics: Mapping[str, object], title: str) -> None:
    """Prints ``metrics`` as a table, one row per metric."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        value = _plain(value)
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
