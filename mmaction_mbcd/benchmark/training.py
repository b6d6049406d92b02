"""A training at a chosen size on random clips, one step at a time."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mmaction.registry import DATASETS, LOOPS
from mmaction.structures import ActionDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from .. import cli
from ..engine import ResumableTrainLoop
from ..engine.checkpoint_checks import module_of
from ..errors import UsageError

SIZES = {"small": "synth_action", "paper": "epic_kitchens"}
"""Size -> the folder of configs that has it."""
_DISTINCT = 8  # random clips
_QUIET = ("runtime_info", "param_scheduler", "sampler_seed", "batch_norm", "finite")


@dataclass(frozen=True)
class Setting:
    """What is trained, at which size.

    Attributes:
        config: Path of a config.
        batch: Clips of a step; the config's if None.
        pixels: Side of a frame; the config's if None.
        clip_length: Frames of a clip of the modality with the most, the others' in
            proportion; the config's if None.
        modalities: How many: the config's in order, and from the first on again, under
            names of their own, if it has fewer. All if None.
        amp: None, ``'float16'`` or ``'bfloat16'``.
        device: ``'cpu'`` or ``'cuda'``.
        changes: Further settings of the config, ``{'a.b': value}``, as pairs.
        label: Of the changes, behind the name.
    """

    config: str
    batch: int | None = None
    pixels: int | None = None
    clip_length: int | None = None
    modalities: int | None = None
    amp: str | None = None
    device: str = "cpu"
    changes: tuple[tuple[str, object], ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """The config's, without its folder, and what was changed."""
        return Path(self.config).stem + self.label

    def of(self, config: str) -> Setting:
        """The same with another config."""
        return replace(self, config=config)

    def changed(self, changes: Mapping[str, object]) -> Setting:
        """The same with further settings."""
        label = "".join(
            f", {key.split('.')[-1]}={value}" for key, value in changes.items()
        )
        return replace(
            self, changes=(*self.changes, *changes.items()), label=self.label + label
        )


def method_configs(root: Path, size: str, names: Sequence[str] = ()) -> list[str]:
    """Paths of the configs of a size, ERM's first; ablations and add-ons only by name.

    Args:
        root: Folder ``configs/mbcd``.
        size: One of :data:`SIZES`.
        names: Names of leaves of that size, or paths of configs; all methods if empty.

    Raises:
        UsageError: For a name that is neither.
    """
    folder = root / SIZES[size]
    leaves = {path.stem for path in folder.glob("*.py")}
    methods = {path.stem for path in (root / "_base_" / "methods").glob("*.py")}
    if not names:
        ablations = {name for name in methods if name.startswith(("table", "mbcd_"))}
        names = sorted(leaves & methods - ablations)
    paths = []
    for name in dict.fromkeys(["erm", *names]):
        path = folder / f"{name}.py"
        if not path.is_file() and not Path(name).is_file():
            raise UsageError(
                f"no config {name}: give a path, or one of {', '.join(sorted(leaves))}"
            )
        paths.append(str(path if path.is_file() else name))
    return paths


# ------------------------------------------------------------------ random clips


@DATASETS.register_module()
class RandomClips:
    """Clips of random pixels in the shapes that a pipeline would give.

    They are drawn once, a few of them, and held: drawing would take as long as a GPU
    steps.

    Args:
        shapes: ``{modality: shape}`` of one clip; frames are bytes, sound is not.
        classes: ``C``.
        domains: Number of sources.
        views: Of each clip; with more than one an item is a list.
        count: Clips.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        classes: int,
        domains: int = 2,
        views: int = 1,
        count: int = 100_000,
    ) -> None:
        self.shapes, self.views, self.count = shapes, views, count
        self.modalities = list(shapes)
        self.sources = [f"domain{i}" for i in range(domains)]
        self.metainfo = dict(classes=[f"class{i}" for i in range(classes)])
        self._held: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict | list[dict]:
        views = [self._view(int(index), view) for view in range(self.views)]
        return views if self.views > 1 else views[0]

    def _view(self, index: int, view: int) -> dict:
        key = (index % _DISTINCT, view)
        if key not in self._held:
            generator = np.random.default_rng(key)
            self._held[key] = {m: _random(generator, s) for m, s in self.shapes.items()}
        sample = ActionDataSample()
        sample.set_gt_label(index % len(self.metainfo["classes"]))
        domain = index % len(self.sources)
        sample.set_metainfo(
            dict(
                sample_id=f"random{index}",
                domain=self.sources[domain],
                domain_index=domain,
                role="source",
                present=dict.fromkeys(self.shapes, True),
                view=view,
            )
        )
        return dict(inputs=dict(self._held[key]), data_samples=sample)


def _random(generator: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    if len(shape) == 3:  # a spectrogram
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))


def clip_shapes(
    cfg: Config, pixels: int | None = None, clip_length: int | None = None
) -> dict[str, tuple[int, ...]]:
    """``{modality: shape}`` of what the training pipelines of a config give.

    Frames are ``(channels, frames, pixels, pixels)``, a spectrogram is
    ``(1, frequencies, times)``.

    Args:
        cfg: With the pipelines of this project's transforms.
        pixels: Side of a frame, instead of the config's.
        clip_length: Frames of the longest clip, instead of the config's.
    """
    pipelines = cfg.train_dataloader.dataset.pipelines
    steps = {m: list(_flat(pipeline)) for m, pipeline in pipelines.items()}
    longest = max(step.get("clip_len", 1) for own in steps.values() for step in own)
    scale = clip_length / longest if clip_length else 1
    shapes = {}
    for m in cfg.model.modalities:
        found = {key: value for step in steps[m] for key, value in step.items()}
        if "nperseg" in found:
            hop = found["nperseg"] - found["noverlap"]
            times = (found["length"] - found["noverlap"]) // hop
            shapes[m] = (1, found["nperseg"] // 2 + 1, times)
        else:
            side = pixels or found["scale"][0]
            frames = max(round(found["clip_len"] * scale), 1)
            channels = cfg.model.encoders[m].backbone.get("in_channels", 3)
            shapes[m] = (channels, frames, side, side)
    return shapes


def _flat(pipeline: Sequence) -> Iterator[Mapping]:
    for step in pipeline:
        if isinstance(step, Mapping):
            yield step
        else:
            yield from _flat(step)


def repeat_modalities(cfg: Config, count: int) -> None:
    """Leaves a config ``count`` modalities; further ones are copies of the first."""
    known = list(cfg.model.modalities)
    model, pipelines = cfg.model, cfg.train_dataloader.dataset.pipelines
    names = known[:count]
    for index in range(len(known), count):
        like = known[index % len(known)]
        names.append(f"{like}{index // len(known) + 1}")
        for parts in (model.encoders, model.data_preprocessor.preprocessors, pipelines):
            parts[names[-1]] = copy.deepcopy(parts[like])
    model.modalities = names


# ------------------------------------------------------------------ the training


class QuietRunner(Runner):
    """Says nothing of its environment, and trains where the config says."""

    def setup_env(self, env_cfg: Mapping) -> None:
        """Each run of this process sets the start method again, which warns."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Multi-processing start method")
            super().setup_env(env_cfg)

    def _log_env(self, env_cfg: Mapping) -> None:
        """MMEngine asks every compiler for its version here, which takes seconds."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Moves the model to ``cfg.benchmark_device`` where there is one process."""
        if self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        return model.to(self.cfg.benchmark_device)


@LOOPS.register_module()
class StepwiseTrainLoop(ResumableTrainLoop):
    """Prepares a training, and leaves its steps to whoever asks for them."""

    def run(self) -> nn.Module:
        """Does all that comes before the first step."""
        self._check_parts()
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        return self.runner.model


def load_setting(setting: Setting) -> Config:
    """The config at the wanted size, with random weights and without files to write.

    The hooks that a step needs stay (guard, teacher, schedule, BatchNorm's mean);
    checkpoints, the log and validation go.
    """
    cfg = cli.read_config(setting.config)
    cfg.merge_from_dict(dict(setting.changes))
    if setting.modalities is not None:
        repeat_modalities(cfg, setting.modalities)
    for encoder in cfg.model.encoders.values():
        encoder.pretrained = None
    if setting.amp is not None:
        cli.enable_amp(cfg, setting.amp)
    cli.disable_validation(cfg)
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    kept = {name: hook for name, hook in cfg.default_hooks.items() if name in _QUIET}
    # None turns off what MMEngine has by default.
    cfg.default_hooks = dict.fromkeys(("timer", "logger", "checkpoint")) | kept
    cfg.visualizer, cfg.log_level = None, "ERROR"
    cfg.benchmark_device = setting.device
    return cfg


def read_random_clips(cfg: Config, setting: Setting) -> None:
    """Trains on random clips, which nobody has to read or decode."""
    old = cfg.train_dataloader
    cfg.train_dataloader = dict(
        batch_size=setting.batch or old.batch_size,
        num_workers=0,
        pin_memory=setting.device == "cuda",  # as the tools set it
        drop_last=True,
        sampler=dict(type="ResumableSampler", shuffle=True),
        collate_fn=dict(type="collate_views"),
        dataset=dict(
            type="RandomClips",
            shapes=clip_shapes(cfg, setting.pixels, setting.clip_length),
            classes=cfg.model.num_classes,
            domains=cfg.model.num_domains,
            views=old.dataset.get("views", 1),
        ),
    )


def run_quietly(cfg: Config) -> Runner:
    """Runs the training loop of a config of :func:`load_setting`; keeps no file."""
    cfg.randomness = dict(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir, cfg.experiment_name = folder, Path(folder).name
        runner = QuietRunner.from_cfg(cfg)
        runner.train()
    return runner


class Training:
    """A training whose steps are taken one by one, on one batch of random clips.

    A step is that of the training loop: random numbers, hooks, forward, backward,
    optimizer, averaging, and the fetch of what is logged.

    Args:
        setting: What is trained.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        cfg = load_setting(setting)
        read_random_clips(cfg, setting)
        cfg.train_cfg = dict(type="StepwiseTrainLoop", max_epochs=1)
        self.runner = run_quietly(cfg)
        self.batch = next(iter(self.runner.train_dataloader))
        self._steps = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.runner.model.parameters()).device

    def step(self) -> None:
        """Takes one step."""
        self.runner.train_loop.run_iter(self._steps, self.batch)
        self._steps += 1

    def tensors(self) -> Iterator[torch.Tensor]:
        """What lies on the device between two steps: the model and its teacher."""
        model = module_of(self.runner)
        for each in filter(None, (model, model._lent.teacher)):
            yield from each.parameters()
            yield from each.buffers()
