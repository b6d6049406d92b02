"""What reading a clip costs: MMAction2's transforms, this package's, a frame store."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from .. import cores, progress
from ..cli.data import quiet, set_datasets
from ..datasets import HACDataset, MultiModalDataset, SampleIndex, collate_views
from ..datasets.frame_store import SETTINGS
from ..preparation.packing import entries_of, make, store_settings

STOCK, SOURCES = "MMAction2's transforms", "files"


class StockHACDataset(HACDataset):
    """HAC whose flow is two videos, which is what MMAction2's transforms can read."""

    MODALITY_TYPES = {
        "video": "RGB",
        "flow_x": "RGB",
        "flow_y": "RGB",
        "audio": "Audio",
    }

    def rows(self, domain: str, split: str) -> list[dict]:
        """The rows, with a modality for each component."""
        rows = super().rows(domain, split)
        for row in rows:
            x, y = row["files"].pop("flow")
            row["files"] |= dict(flow_x=x, flow_y=y)
        return rows


def stock_pipelines(pipelines: Mapping[str, Sequence]) -> dict[str, list]:
    """The training pipelines of the paper's clips by MMAction2's transforms alone.

    Sound has none there for waveforms, and keeps its own.
    """

    def frames(length: int, interval: int) -> list[dict]:
        return [
            dict(type="DecordInit"),
            dict(type="SampleFrames", clip_len=length, frame_interval=interval),
            dict(type="DecordDecode"),
            dict(type="Resize", scale=(-1, 256)),
            dict(type="RandomResizedCrop"),
            dict(type="Resize", scale=(224, 224), keep_ratio=False),
            dict(type="Flip", flip_ratio=0.5),
            dict(type="FormatShape", input_format="NCTHW", collapse=True),
        ]

    return dict(
        video=frames(32, 2),
        flow_x=frames(8, 4),
        flow_y=frames(8, 4),
        audio=[dict(step, span="file") if _loads(step) else step
               for step in _flat(pipelines["audio"])],
    )  # fmt: skip


def _loads(step: Mapping) -> bool:
    return step["type"] == "LoadWaveform"


def _flat(steps: Sequence) -> Iterator:
    for step in steps:
        yield from _flat(step) if isinstance(step, (list, tuple)) else [step]


@dataclass
class ReadingFigures:
    """What was measured of one way of reading.

    Attributes:
        name: What it reads.
        seconds: CPU seconds of a clip, one for each pair.
        ratios: Of the reference's seconds to these, one for each pair.
        stored: Bytes of a clip in the store; 0 without one.
        packed: CPU seconds that storing a clip took; 0 without a store.
    """

    name: str
    seconds: list[float]
    ratios: list[float]
    stored: float = 0.0
    packed: float = 0.0


def read_clips(dataset: MultiModalDataset, count: int, epoch: int) -> float:
    """CPU seconds that reading a clip takes, in this process.

    Args:
        dataset: Of training clips.
        count: How many clips.
        epoch: Crops and times are drawn for it.
    """
    begin = time.process_time()
    for index in range(count):
        dataset[SampleIndex(index, (0, epoch))]
    return (time.process_time() - begin) / count


def read_by_workers(
    dataset: MultiModalDataset, workers: int, batch: int, clips: int
) -> float:
    """Clips a second that data workers deliver, their start apart."""
    loader = DataLoader(
        dataset,
        batch,
        sampler=[i % len(dataset) for i in range(clips + batch * (workers + 1))],
        num_workers=workers,
        collate_fn=collate_views,
        drop_last=True,
    )
    batches = iter(loader)
    for _ in range(workers + 1):  # those that were read ahead while the others started
        next(batches)
    begin = time.perf_counter()
    count = sum(batch for _ in batches)
    return count / (time.perf_counter() - begin)


def stores_of(
    cfg: Config, folder: Path, codecs: Sequence[str]
) -> dict[str, tuple[Path, float, float]]:
    """Packs a config's clips with each codec.

    Returns:
        ``{codec: (store, bytes of a clip, CPU seconds of a clip)}``; a clip is video
        and flow.
    """
    found = {}
    for codec in codecs:
        root, settings = folder / codec, store_settings(cfg, codec)
        entries = entries_of(cfg, settings, root)
        made = [make(entry) for entry in entries]
        (root / SETTINGS).write_text(settings.text())
        clips = len({entry.clip for entry in entries if entry.modality == "video"})
        size, seconds = (sum(column) / clips for column in zip(*made, strict=True))
        found[codec] = root, size, seconds
    return found


def ways_of_reading(
    cfg: Config, stores: Mapping[str, Path], stock: bool
) -> dict[str, MultiModalDataset]:
    """The training data set of a config, once for each way.

    Args:
        cfg: Config of a run.
        stores: ``{codec: folder}``.
        stock: With MMAction2's transforms; for a config of HAC.
    """
    init_default_scope("mmaction")
    settings = cfg.train_dataloader.dataset
    found = {}
    if stock:
        pipelines = stock_pipelines(settings.pipelines)
        found[STOCK] = DATASETS.build(
            dict(settings)
            | dict(type=StockHACDataset, pipelines=pipelines, modalities=[*pipelines])
        )
    for name, store in {SOURCES: None, **stores}.items():
        changed = cfg.copy()
        set_datasets(changed, frame_store=None if store is None else str(store))
        found[name] = DATASETS.build(changed.train_dataloader.dataset)
    with quiet():
        for dataset in found.values():
            dataset.full_init()
    return found


def compare_readings(
    ways: Mapping[str, MultiModalDataset], clips: int, pairs: int
) -> list[ReadingFigures]:
    """Reads the same clips in every way, in turn; the first is the reference.

    Args:
        ways: As :func:`ways_of_reading` has them.
        clips: Of a block.
        pairs: Blocks of each.
    """
    figures = [ReadingFigures(name, [], []) for name in ways]
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cores.keep_freed_memory_of_a_worker()
    cv2.setNumThreads(0)  # as in a data worker
    torch.set_num_threads(1)
    try:
        for dataset in ways.values():
            read_clips(dataset, 2, 0)
        with progress.Meter("reading", "blocks", pairs * len(ways)) as meter:
            for pair in range(pairs):
                for each, dataset in zip(figures, ways.values(), strict=True):
                    each.seconds.append(read_clips(dataset, clips, 1 + pair))
                    each.ratios.append(figures[0].seconds[pair] / each.seconds[pair])
                    meter.add(1)
    finally:
        cores.keep_freed_memory()
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    return figures


def profile_reading(
    dataset: MultiModalDataset, clips: int, top: int = 10
) -> list[dict]:
    """The functions in which most of the time is spent, of reading some clips."""
    profile = cProfile.Profile()
    profile.enable()
    read_clips(dataset, clips, 99)
    profile.disable()
    stats = pstats.Stats(profile)
    total = stats.total_tt
    entries = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:top]
    return [
        dict(
            name=f"{Path(file).name}:{name}" if line else name,
            milliseconds=1e3 * own / clips,
            share=own / total,
            calls=calls / clips,
        )
        for (file, line, name), (_, calls, own, _, _) in entries
    ]
