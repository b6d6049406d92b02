"""An epoch of a training: how long it waits for data, and how long it steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmaction.registry import LOOPS
from mmengine.dist import get_world_size
from torch import nn

from .. import cli
from ..engine import ResumableTrainLoop
from ..engine.checkpoint_checks import module_of
from .training import Setting, load_setting, read_random_clips, run_quietly

PAPER_CLIPS = 20 * 399 * 16
"""20 epochs of EPIC-Kitchens: 399 steps of 16 clips each."""


@LOOPS.register_module()
class TimedTrainLoop(ResumableTrainLoop):
    """Notes for each step how long it waited for its batch, and how long it took.

    Args:
        steps: Steps of the epoch at most; all if None.

    Attributes:
        waited: Seconds from asking for a batch until it was there; the first one's
            start the data workers.
        stepped: Seconds of each step. A GPU has done the work of the first and of the
            last by their ends; in between it may be a step behind.
    """

    def __init__(self, *args, steps: int | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.steps = steps
        self.waited: list[float] = []
        self.stepped: list[float] = []

    def _batches_from(self, start: int) -> Iterator[dict]:
        since = time.perf_counter()
        batches = iter(super()._batches_from(start))
        while self.steps is None or len(self.stepped) < self.steps:
            batch = next(batches, None)
            if batch is None:
                return
            self.waited.append(time.perf_counter() - since)
            yield batch
            since = time.perf_counter()

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Takes a step, and notes its time."""
        start = time.perf_counter()
        super().run_iter(idx, data_batch)
        if not self.stepped or len(self.stepped) + 1 == self.steps:
            self.settle()
        self.stepped.append(time.perf_counter() - start)


@dataclass(frozen=True)
class EpochFigures:
    """What an epoch took.

    Attributes:
        waited: Seconds that each step waited for its batch.
        stepped: Seconds of each step.
        batch: Clips of a step, of all processes together.
        processes: How many there were.
        gradient_bytes: What a step averages over processes.
    """

    waited: Sequence[float]
    stepped: Sequence[float]
    batch: int
    processes: int = 1
    gradient_bytes: int = 0

    @property
    def first_batch(self) -> float:
        """Seconds until the first batch was there, with the start of the workers."""
        return self.waited[0]

    @property
    def clips_per_second(self) -> float:
        """Behind the first step, which warms up; of that one if there is no other."""
        behind = slice(1, None) if len(self.stepped) > 1 else slice(None)
        seconds = sum(self.waited[behind]) + sum(self.stepped[behind])
        return len(self.stepped[behind]) * self.batch / seconds

    @property
    def waiting_share(self) -> float:
        """Of the time behind the first step, the part that data was waited for."""
        waited, stepped = sum(self.waited[1:]), sum(self.stepped[1:])
        return waited / (waited + stepped) if stepped else 0.0

    @property
    def paper_minutes(self) -> float:
        """Minutes for 20 epochs of 399 steps of 16 clips at this speed."""
        return PAPER_CLIPS / self.clips_per_second / 60

    def as_dict(self) -> dict:
        """For JSON."""
        return dict(
            steps=len(self.stepped),
            batch=self.batch,
            processes=self.processes,
            first_batch_seconds=self.first_batch,
            waiting_seconds=sum(self.waited),
            step_seconds=sum(self.stepped),
            waiting_share=self.waiting_share,
            clips_per_second=self.clips_per_second,
            paper_minutes=self.paper_minutes,
            gradient_bytes=self.gradient_bytes,
        )


def measure_epoch(
    setting: Setting,
    data_root: str | None,
    steps: int | None = None,
    workers: int | None = None,
    launcher: str = "none",
    frame_store: str | None = None,
) -> EpochFigures:
    """Trains an epoch, from random weights, and forgets it.

    Args:
        setting: What is trained; its size counts for random clips alone.
        data_root: Folder of the data; None for random clips.
        steps: At most; the whole epoch if None.
        workers: Data workers of each process; the config's if None.
        launcher: ``'pytorch'`` below torchrun.
        frame_store: Folder of a store, from which frames are read.
    """
    cfg = load_setting(setting)
    if data_root is None:
        read_random_clips(cfg, setting)
    else:
        cli.suit_loaders(cfg)  # as the tools do
        cli.set_datasets(cfg, data_root=data_root)
        if frame_store is not None:
            cli.set_datasets(cfg, frame_store=frame_store)
        if setting.batch is not None:
            cfg.train_dataloader.batch_size = setting.batch
    if workers is not None:
        cfg.train_dataloader.num_workers = workers
    loader = cfg.train_dataloader
    loader.persistent_workers = loader.num_workers > 0
    cfg.train_cfg = dict(type="TimedTrainLoop", max_epochs=1, steps=steps)
    cfg.launcher = launcher
    cli.prepare_cpu_launch(cfg)
    runner = run_quietly(cfg)
    loop = runner.train_loop
    return EpochFigures(
        loop.waited,
        loop.stepped,
        loader.batch_size * get_world_size(),
        get_world_size(),
        gradient_bytes(module_of(runner)),
    )


def gradient_bytes(model: nn.Module) -> int:
    """Bytes that data-parallel training averages in a step: the trained weights'."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(p.numel() * p.element_size() for p in trained)


def communication_seconds(size: float, processes: int, bandwidth: float) -> float:
    r"""Seconds of a ring all-reduce, nothing of it hidden behind the backward.

    .. math:: 2 \frac{n - 1}{n} \frac{\text{size}}{\text{bandwidth}}

    Args:
        size: Bytes.
        processes: ``n``.
        bandwidth: Bytes per second of the slowest link of the ring.
    """
    return 2 * (processes - 1) / processes * size / bandwidth


def projected_minutes(figures: EpochFigures, processes: int, bandwidth: float) -> float:
    """Minutes for the paper's 20 epochs on more processes, each at this speed.

    Each process takes batches of the size that was measured on one, so a step sees
    ``processes`` times as many clips; the data must be read as fast on each.

    Args:
        figures: Measured on one process.
        processes: How many.
        bandwidth: Bytes per second between them.
    """
    own = figures.batch / figures.processes
    step = own * figures.processes / figures.clips_per_second
    step += communication_seconds(figures.gradient_bytes, processes, bandwidth)
    return PAPER_CLIPS / (own * processes) * step / 60
