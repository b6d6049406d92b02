"""What a run says about itself: a page at its start, and how far it is."""

import json
import logging
import os
import os.path as osp
import time
from collections.abc import Iterator, Mapping

import torch
from mmaction.registry import HOOKS, RUNNERS
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .checkpoint_checks import module_of

PROGRESS_FILE = "progress.json"
_LONG = (
    "Config:\n",
    "\n" + "-" * 60 + "\nSystem environment:",
    "Hooks will be executed",
)


class _Brief(logging.Filter):
    """Keeps what fills screens out of the terminal; the log file has it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_LONG)


@RUNNERS.register_module()
class BriefRunner(Runner):
    """MMEngine's runner without config, environment and hooks on the terminal.

    They stand in the log file, and the config beside it as a file of its own;
    :class:`RunReportHook` prints a page instead.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """The logger, whose terminal handlers are brief."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_Brief())
        return logger


@HOOKS.register_module()
class RunReportHook(Hook):
    """Prints a page about the run, and keeps ``progress.json`` in its folder.

    The file holds ``phase`` (``'train'``, ``'validation'``, ``'test'``), ``done`` and
    ``total`` (steps), ``epoch`` and ``epochs``, and for a forecast ``first``, the
    steps that were done when this process began to count, and ``seconds`` since then;
    it is replaced as a whole, so that other processes can read it at any time.

    Args:
        interval: Least time between two writes, in seconds.
    """

    priority = "LOWEST"

    def __init__(self, interval: float = 1.0) -> None:
        self.interval = interval
        self._written = -float("inf")
        self._first: dict[str, tuple[int, float]] = {}

    def before_train(self, runner: Runner) -> None:
        """Prints the page."""
        self._print(runner, dict(training_page(runner)))

    def before_test(self, runner: Runner) -> None:
        """Prints the page."""
        self._print(runner, dict(test_page(runner)))

    @master_only
    def _print(self, runner: Runner, page: Mapping[str, str]) -> None:
        width = max(map(len, page))
        lines = [f"  {key:<{width}}  {value}" for key, value in page.items() if value]
        runner.logger.info("The run\n" + "\n".join(lines))

    def after_train_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Notes the step."""
        self._note(runner, "train", runner.iter + 1, runner.max_iters)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Notes the step."""
        self._note(runner, "validation", batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Notes the step."""
        self._note(runner, "test", batch_idx + 1, len(runner.test_dataloader))

    @master_only
    def _note(self, runner: Runner, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        first, since = self._first.setdefault(phase, (done, now))
        if now - self._written < self.interval and done < total:
            return
        self._written = now
        facts = dict(phase=phase, done=done, total=total)
        facts |= dict(first=first, seconds=now - since)
        if phase != "test":
            # A validation comes behind its epoch, which is counted by then.
            epoch = runner.epoch + (phase == "train")
            facts |= dict(epoch=epoch, epochs=runner.max_epochs)
        path = osp.join(runner.work_dir, PROGRESS_FILE)
        with open(f"{path}.part", "w") as file:
            json.dump(facts, file)
        os.replace(f"{path}.part", path)


def training_page(runner: Runner) -> Iterator[tuple[str, str]]:
    """What one wants to know of a training before it takes its time."""
    yield from _common(runner)
    loader = runner.train_dataloader
    yield "data", _data(loader)
    yield "training", _rows(loader)
    if runner._val_loop is not None:
        yield "validation", _rows(runner.val_dataloader)
    yield from _parameters(module_of(runner))
    steps, epochs = len(loader), runner.max_epochs
    batch = f"{loader.batch_size} clips"
    if get_world_size() > 1:
        batch += f" on each of {get_world_size()} processes"
    total = f"{epochs * steps:,}, {batch} each"
    yield "steps", f"{epochs} epoch{'s' * (epochs > 1)} of {steps} = {total}"
    yield "optimizer", _optimizer(runner)
    yield "seed", str(runner.seed)
    yield "kept", _selection(runner)
    yield from _places(runner)


def test_page(runner: Runner) -> Iterator[tuple[str, str]]:
    """What is tested on what."""
    yield from _common(runner)
    yield "checkpoint", str(runner._load_from or "none: random weights")
    yield "data", _data(runner.test_dataloader)
    yield "test", _rows(runner.test_dataloader)
    yield from _places(runner)


def _common(runner: Runner) -> Iterator[tuple[str, str]]:
    model = module_of(runner)
    method = (runner.cfg.get("method") or {}).get("name")
    yield "method", str(method or type(model).__name__)
    if modalities := getattr(model, "modalities", None):
        yield "modalities", ", ".join(modalities)
    if classes := getattr(model, "num_classes", None):
        yield "classes", str(classes)
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield "device", name + ("" if device.type == "cuda" else _threads())


def _threads() -> str:
    count = torch.get_num_threads()
    return f", {count} thread{'s' * (count > 1)}"


def _rows(loader: DataLoader) -> str:
    """``N = 360: street 180, studio 180``."""
    dataset = loader.dataset
    targets = getattr(dataset, "targets", ())
    counts = getattr(dataset, "counts", {})
    parts = [
        f"{name} {count}{' (target)' * (name in targets)}"
        for name, count in counts.items()
    ]
    return f"N = {len(dataset)}" + (": " if parts else "") + ", ".join(parts)


def _data(loader: DataLoader) -> str:
    dataset = loader.dataset
    facts = [type(dataset).__name__, getattr(dataset, "data_root", None)]
    if sampling := getattr(dataset, "sampling", None):
        facts.append(f"sampling {sampling}")
    if store := getattr(dataset, "frame_store", None):
        facts.append(f"frames from {store.root} ({store.settings.describe()})")
    return ", ".join(filter(None, facts))


def _parameters(model: nn.Module) -> Iterator[tuple[str, str]]:
    groups = dict(getattr(model, "encoders", {}).items())
    inside = {id(p) for part in groups.values() for p in part.parameters()}
    rest = [p for p in model.parameters() if id(p) not in inside]
    texts = [f"{m} {_trained(part.parameters())}" for m, part in groups.items()]
    if rest:
        texts.append(f"{'heads and losses' if groups else 'model'} {_trained(rest)}")
    yield "trainable", _trained(model.parameters()) + " parameters"
    if groups:
        yield "", "; ".join(texts)


def _trained(parameters: Iterator[nn.Parameter]) -> str:
    counts = [(p.numel(), p.requires_grad) for p in parameters]
    return (
        f"{_count(sum(n for n, trained in counts if trained))} of "
        f"{_count(sum(n for n, _ in counts))}"
    )


def _count(number: int) -> str:
    for unit, name in ((1_000_000, " M"), (1_000, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def _optimizer(runner: Runner) -> str:
    wrapper = runner.optim_wrapper
    optimizer = getattr(wrapper, "optimizer", None)
    if optimizer is None:
        return type(wrapper).__name__
    values = optimizer.defaults
    text = f"{type(optimizer).__name__}, rate {values.get('lr'):g}"
    if values.get("weight_decay"):
        text += f", weight decay {values['weight_decay']:g}"
    return f"{text} ({type(wrapper).__name__})"


def _selection(runner: Runner) -> str:
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            keys = ", ".join(getattr(hook, "key_indicators", [str(hook.save_best)]))
            count = hook.max_keep_ckpts
            rest = {-1: "all others", 1: "the latest"}.get(count, f"the last {count}")
            return f"the checkpoint with the best {keys}, and {rest}"
    return "the latest checkpoint"


def _places(runner: Runner) -> Iterator[tuple[str, str]]:
    yield "folder", str(runner.work_dir)
    config = osp.basename(runner.cfg.filename or f"{runner.timestamp}.py")
    log = osp.join(runner.timestamp, f"{runner.timestamp}.log")
    yield "in it", f"{config} (the whole config), {log}"
