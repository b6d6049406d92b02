"""A finished run, as its folder holds it."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..checkpoint_files import checkpoints_in
from ..cli import add_data_options, first_dataset, load_config
from ..errors import UsageError
from .trained import TrainedModel

_WEIGHTS = ("teacher", "student")


@dataclass
class Run:
    """One run, or one set of weights of it.

    Attributes:
        name: In figures.
        folder: Of ``tools/train.py``.
        file: A checkpoint that was asked for; None leaves the choice to
            :meth:`checkpoint`.
        weights: ``'teacher'`` or ``'student'``; the config's choice if None.
        predictions: What these weights say of every clip, if a grid has kept it.
        epoch: That a grid's rule has chosen, also where its checkpoint is gone.
    """

    name: str
    folder: Path
    file: Path | None = None
    weights: str | None = None
    predictions: Path | None = None
    epoch: int | None = None

    @classmethod
    def parse(cls, text: str) -> Run:
        """Reads ``[NAME=]FOLDER[@teacher|@student]``, or a checkpoint for the folder.

        Raises:
            UsageError: If there is no such folder or file, or it is not a run's.
        """
        name, named, place = text.rpartition("=")
        path, at, weights = place.rpartition("@")
        if not at or weights not in _WEIGHTS:
            path, weights = place, ""
        path = Path(path)
        if not path.exists():
            raise UsageError(f"{path}: no such run folder or checkpoint")
        folder, file = (path, None) if path.is_dir() else (path.parent, path)
        default = folder.resolve().name
        default += f" {file.stem}" if file else ""
        default += f" {weights}" if weights else ""
        return cls(name if named else default, folder, file, weights or None)

    def config(self, data_root: str | None = None) -> Config:
        """The resolved config that the run has left.

        Args:
            data_root: Where the data lie now; as in the run if None.

        Raises:
            UsageError: If the folder has no config, or several.
        """
        found = sorted(self.folder.glob("*.py"))
        if len(found) != 1:
            raise UsageError(
                f"{self.folder} holds {len(found)} config files (*.py); the folder of "
                "a run of tools/train.py has one"
            )
        parser = argparse.ArgumentParser()
        parser.add_argument("config")
        add_data_options(parser)
        args = parser.parse_args([str(found[0])])
        args.data_root = data_root
        return load_config(args)

    def checkpoint(self, rule: str = "best") -> Path:
        """The file that was asked for, or that of a rule.

        Args:
            rule: ``'best'``, by source validation, or ``'last'``.

        Raises:
            UsageError: If there is none.
        """
        if self.file is not None:
            return self.file
        if rule == "last":
            found = [Path(path) for path in checkpoints_in(str(self.folder))]
        else:
            best = best_checkpoint(self.folder)
            found = [] if best is None else [best]
        if not found:
            raise UsageError(
                f"{self.folder} holds no {rule} checkpoint "
                f"({'epoch_N.pth' if rule == 'last' else 'best_source_top1_*.pth'})"
            )
        return found[0]

    def checkpoints(self) -> list[Path]:
        """All that are left, one per epoch, the earliest first."""
        found = {epoch_of(path): path for path in sorted(self.folder.glob("*.pth"))
                 if epoch_of(path) is not None}  # fmt: skip
        return [found[epoch] for epoch in sorted(found)]

    def load(
        self, rule: str = "best", data_root: str | None = None,
        checkpoint: Path | None = None,
    ) -> TrainedModel:  # fmt: skip
        """The model with its trained weights."""
        file = str(checkpoint or self.checkpoint(rule))
        return TrainedModel.load(self.config(data_root), file, weights=self.weights)

    def modalities(self) -> list[str]:
        """Those of its model, in the order of fusion."""
        model = self.config().model
        return list(model.get("modalities") or model.encoders)

    def target(self) -> str:
        """Name of the unseen domain, or of several."""
        target = first_dataset(self.config()).get("target") or "target"
        return target if isinstance(target, str) else ", ".join(target)


def best_checkpoint(folder: Path, role: str = "source") -> Path | None:
    """That of the epoch that is best on the sources' validation; None if there is none.

    A killed run may leave an earlier best one beside its successor: a later epoch is
    one only if it is better.

    Args:
        folder: Of a run.
        role: ``'source'``, or ``'target'`` for the oracle's.
    """
    found = folder.glob(f"best_{role}_top1_epoch_*.pth")
    return max(found, key=epoch_of, default=None)


def epoch_of(checkpoint: Path) -> int | None:
    """Which epoch a checkpoint's name says."""
    found = re.search(r"epoch_(\d+)$", checkpoint.stem)
    return int(found[1]) if found else None


def parse_runs(runs: Sequence[str | Run]) -> list[Run]:
    """:meth:`Run.parse` of each text.

    Raises:
        UsageError: If two have one name.
    """
    runs = [Run.parse(run) if isinstance(run, str) else run for run in runs]
    twice = [name for name, n in Counter(run.name for run in runs).items() if n > 1]
    if twice:
        raise UsageError(
            f"several runs would be called {twice[0]!r} in the figure: name them as "
            "NAME=RUN"
        )
    return runs
