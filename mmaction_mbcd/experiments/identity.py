"""What makes two runs the same: the resolved config, the seed and the data."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from .. import cli
from ..cli.data import SPLITS, innermost_datasets
from ..datasets.frame_store import StoreSettings
from .grid import OptionParser, RunSpec

# Where a run lies, what it prints, how fast it is: runs that differ in these alone have
# the same result (tests/test_engine/test_repeatable.py).
# Whether the target is watched as well is a matter of the rules of selection.
_INDIFFERENT = {
    "custom_imports",
    "data_root",
    "env_cfg",
    "filename",
    "frame_store",
    "launcher",
    "log_level",
    "log_processor",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
    "published",
    "read_timeout",
    "resume",
    "visualizer",
    "watch_target",
    "work_dir",
}
_INDIFFERENT_HOOKS = {"checkpoint", "finite", "logger", "report", "timer"}


@dataclass(frozen=True)
class Identity:
    """What a run is.

    Attributes:
        config: The resolved config, but for what does not change the result.
        seed: Of the training.
        data: ``{use: {'N': rows, 'sha256': of the annotations}}``.
        processes: That train together; each has a batch of the config's size.
    """

    config: Mapping
    seed: int
    data: Mapping[str, Mapping]
    processes: int = 1

    @property
    def digest(self) -> str:
        """Of all of it, 64 hexadecimal digits."""
        known = dict(config=self.config, seed=self.seed, data=self.data)
        known |= dict(processes=self.processes) if self.processes > 1 else {}
        text = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(spec: RunSpec, settings: Sequence[str] = ()) -> Config:
    """The config of a run with all its options, as ``tools/train.py`` makes it.

    Args:
        spec: The run.
        settings: Further ``key=value``.

    Raises:
        UsageError: If it cannot be made.
    """
    parser = OptionParser()
    parser.add_argument("config")
    return cli.load_config(parser.parse_args(command(spec, settings)))


def command(spec: RunSpec, settings: Sequence[str] = ()) -> list[str]:
    """The config and the options of both tools."""
    every = [*spec.settings, *settings]
    bare = spec.options()
    if spec.settings:  # one --cfg-options for all
        start = bare.index("--cfg-options")
        del bare[start : start + 1 + len(spec.settings)]
    return [spec.config, *bare, *(["--cfg-options", *every] if every else [])]


def identity(cfg: Config, seed: int, processes: int = 1) -> Identity:
    """What a run of a config is.

    Raises:
        ValueError: If its data cannot be described.
        OSError: If an annotation file cannot be read.
    """
    return Identity(_stable(cfg.to_dict()), seed, data_identity(cfg), processes)


def _stable(value: object, key: str = "") -> object:
    if isinstance(value, Mapping):
        gone = _INDIFFERENT | (_INDIFFERENT_HOOKS if key == "default_hooks" else set())
        kept = {str(k): _stable(v, k) for k, v in value.items() if k not in gone}
        if kept.get("type") == "ResizeClip" and kept.get("keep_ratio") is False:
            kept["type"] = "Resize"  # gives the same, and was MMAction2's own
        return kept
    if isinstance(value, (list, tuple)):
        return [_stable(each) for each in value]
    if isinstance(value, (set, frozenset)):  # whose order differs between processes
        return sorted(str(_stable(each)) for each in value)
    if value == "StepInfoHook":  # logs the same values, and was MMEngine's own
        return "RuntimeInfoHook"
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if callable(value):  # str() of a function holds its address
        module = getattr(value, "__module__", "")
        return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return str(value)


def data_identity(cfg: Config) -> dict[str, dict]:
    """Number and hash of the annotations that each use of a config's data has.

    Clips, labels, domains and times; not the media, and not where they lie. Frames out
    of a store that lost something are other frames (``frames``).

    Returns:
        ``{use: {'N': int, 'sha256': str}}``; use is train, val or test.
    """
    init_default_scope(cfg.get("default_scope") or "mmaction")
    found = {}
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        if not loader:
            continue
        digest, count, frames = hashlib.sha256(), 0, []
        for settings in innermost_datasets(loader["dataset"]):
            rows, hashed = _rows(json.dumps(_unread(settings), default=str))
            digest.update(hashed.encode())
            count += rows
            frames += _stored(settings)
        found[split] = dict(N=count, sha256=digest.hexdigest())
        found[split] |= dict(frames=frames) if frames else {}
    return found


def _stored(settings: Mapping) -> list[dict]:
    """How a data set's frames differ from its files', if they do."""
    root = settings.get("frame_store")
    store = StoreSettings.load(root) if root else None
    if store is None or store.lossless:
        return []
    # Spectrograms are stored without loss.
    keys = ("codec", "quality", "short_sides")
    return [{key: getattr(store, key) for key in keys}]


def _unread(settings: Mapping) -> dict:
    """A dataset's settings without the transforms that read its clips.

    Without the target in a validation, too: it is watched for the rules of selection.
    """
    pipelines = {modality: [] for modality in settings["pipelines"]}
    watched = dict(watch_target=False) if settings.get("watch_target") else {}
    given = dict(pipelines=pipelines, frame_store=None, lazy_init=True)
    return dict(settings) | given | watched


@functools.lru_cache(maxsize=256)
def _rows(settings: str) -> tuple[int, str]:
    """Number of the rows of a dataset, and their hash."""
    chosen = json.loads(settings)
    root = str(chosen.get("data_root", ""))
    dataset = DATASETS.build(chosen)
    dataset.full_init()
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        row = {k: v for k, v in dataset.get_data_info(index).items() if k != "files"}
        text = json.dumps(_inside(row, root), sort_keys=True, default=str)
        digest.update(text.encode())
    return len(dataset), digest.hexdigest()


def _inside(value: object, root: str) -> object:
    """Paths below the dataset's folder as seen from there."""
    if isinstance(value, Mapping):
        return {str(k): _inside(v, root) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_inside(each, root) for each in value]
    if isinstance(value, str) and root and value.startswith(root.rstrip("/") + "/"):
        return value[len(root.rstrip("/")) + 1 :]
    return value


def environment(repo: Path) -> dict:
    """Code revision, versions and machine, for a record."""
    names = ("mmaction_mbcd", "mmaction2", "mmengine", "torch", "torchvision", "numpy")
    versions = {}
    for name in (*names, "mmcv", "mmcv-lite", "decord", "av"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return dict(
        revision=revision(repo),
        python=platform.python_version(),
        versions=versions,
        host=platform.node(),
        processor=_processor(),
        cores=os.cpu_count(),
        gpu=gpu,
    )


@functools.cache
def revision(repo: Path) -> str:
    """The commit of a checkout, ``+`` where files differ from it; ``''`` if unknown."""
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(repo), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout.strip()
            for command in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0] + ("+" if said[1] else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor()).strip()
