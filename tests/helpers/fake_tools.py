"""Stands in for tools/train.py and tools/test.py: the files that they would write."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmaction_mbcd.evaluation.predictions import Predictions


class Ended:
    """A process that ended as it started."""

    def __init__(self, code):
        self.code, self.terminated = code, False

    def exitcode(self):
        return self.code

    def terminate(self):
        self.terminated = True


class Hanging(Ended):
    """A process that runs until it is terminated."""

    def __init__(self):
        super().__init__(None)

    def terminate(self):
        self.terminated, self.code = True, 143


def value_of(line, option):
    """Of a command line; None if it is not there."""
    return line[line.index(option) + 1] if option in line else None


def option_of(line, key):
    """The last ``key=value`` of a command line."""
    found = [word.partition("=")[2] for word in line if word.startswith(f"{key}=")]
    return found[-1] if found else None


@dataclass
class FakeTools:
    """Is a ``Launch``.

    Attributes:
        source: Accuracy on the sources after each epoch.
        target: On the target, written only if it is watched.
        fails: ``{folder or tool: (output, exit code)}``; part of a folder's name.
        hangs: Parts of folders' names whose tools run until they are terminated.
        lines: Every command line that was started.
    """

    source: list = field(default_factory=lambda: [0.2, 0.6, 0.4])
    target: list = field(default_factory=lambda: [0.9, 0.1, 0.3])
    fails: dict = field(default_factory=dict)
    hangs: tuple = ()
    lines: list = field(default_factory=list)
    environments: list = field(default_factory=list)
    on_launch: object = None
    lock: object = field(default_factory=threading.Lock)

    @property
    def started(self):
        """``[(tool, name of the folder)]``"""
        return [
            (Path(line[0]).stem, Path(value_of(line, "--work-dir")).name)
            for line in self.lines
        ]

    @property
    def tools(self):
        """Names of the tools, in the order of their start."""
        return [tool for tool, _ in self.started]

    def __call__(self, line, log, changes):
        with self.lock:
            self.lines.append(list(line))
            self.environments.append(dict(changes))
        if self.on_launch:
            self.on_launch(line)
        folder, tool = Path(value_of(line, "--work-dir")), Path(line[0]).stem
        if any(part in folder.name for part in self.hangs):
            return Hanging()
        for part, (output, code) in self.fails.items():
            if part in (tool, folder.name) or part in folder.name:
                with open(log, "a") as file:
                    file.write(output)
                return Ended(code)
        getattr(self, f"_{tool}")(line, folder)
        return Ended(0)

    def _train(self, line, folder):
        if (folder / f"epoch_{len(self.source)}.pth").exists():
            return  # it is resumed at its end
        watched = option_of(line, "val_dataloader.dataset.watch_target") == "True"
        rows = []
        for epoch, accuracy in enumerate(self.source, 1):
            row = {"source/top1": accuracy, "step": epoch}
            if watched:
                row["target/top1"] = self.target[epoch - 1]
            rows.append(json.dumps(row))
        logs = folder / f"2026_{len(list(folder.glob('2026*')))}" / "vis_data"
        logs.mkdir(parents=True)
        (logs / "scalars.json").write_text("\n".join(rows) + "\n")
        every = option_of(line, "default_hooks.checkpoint.max_keep_ckpts") == "-1"
        for epoch in range(1 if every else len(rows) - 1, len(rows) + 1):
            self._write(folder / f"epoch_{epoch}.pth", epoch)
        (folder / "last_checkpoint").write_text(f"epoch_{len(rows)}.pth")
        roles = dict(source=self.source)
        if "target/top1" in (
            option_of(line, "default_hooks.checkpoint.save_best") or ""
        ):
            roles["target"] = self.target
        for role, values in roles.items():
            best = max(range(len(values)), key=lambda i: (values[i], i)) + 1
            self._write(folder / f"best_{role}_top1_epoch_{best}.pth", best)

    @staticmethod
    def _write(path, epoch):
        path.write_text(str(epoch))

    def _test(self, line, folder):
        epoch = int(Path(line[2]).read_text())
        predictions = Predictions(
            np.array(["a", "b"]), np.array(["d", "d"]), np.array(["target"] * 2),
            np.array([0, 1]), np.zeros(2, bool), {"video": np.ones(2, bool)},
            {"": np.full((2, 2), epoch, np.float32)}, ("x", "y"), dict(epoch=epoch),
        )  # fmt: skip
        predictions.save(value_of(line, "--predictions"))
        found = dict(epoch=epoch, metrics={"target/top1": self.target[epoch - 1]})
        found["in_domain"] = "--in-domain" in line
        Path(value_of(line, "--out")).write_text(json.dumps(found))
