"""Steps beside a reference's, such as ERM's: arithmetic, time, memory, waits."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from .. import progress, scripts
from ..engine.checkpoint_checks import module_of
from ..errors import UsageError
from .arithmetic import count_parts, floor, needed_passes
from .counting import count_flops, counting_waits
from .training import Setting, Training

MIB = 2**20


@dataclass
class StepFigures:
    """What a step of one method costs.

    Attributes:
        name: Of its config.
        flops: Counted in one step.
        floor: What the encoders cannot do without, see :func:`.arithmetic.floor`.
        waits: ``{'file.py:line': count}`` of one step.
        seconds: Of one step, each a mean over a block. CPU seconds of the process on a
            CPU, time until the device is done on CUDA.
        base_seconds: Of the reference's step in the block before each.
        flops_ratio: To the reference's FLOPs.
        floor_ratio: To the reference's floor.
        memory: Peak in MiB. On CUDA what torch had allocated in a step; on a CPU the
            resident memory of a process that takes two steps and nothing else.
    """

    name: str
    flops: int
    floor: int
    waits: dict[str, int]
    seconds: list[float] = field(default_factory=list)
    base_seconds: list[float] = field(default_factory=list)
    flops_ratio: float = 1.0
    floor_ratio: float = 1.0
    memory: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Time over the reference's, one for each pair of neighbours."""
        pairs = zip(self.seconds, self.base_seconds, strict=True)
        return [own / base for own, base in pairs]

    def as_dict(self) -> dict:
        """For JSON."""
        return dict(
            name=self.name,
            flops=self.flops,
            floor=self.floor,
            flops_ratio=self.flops_ratio,
            floor_ratio=self.floor_ratio,
            seconds=self.seconds,
            base_seconds=self.base_seconds,
            time_ratio=middle(self.ratios),
            time_ratio_range=spread(self.ratios),
            memory_mib=self.memory,
            waits=sum(self.waits.values()),
            waits_at=dict(self.waits),
        )


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Lowest and highest; None of nothing."""
    return (min(values), max(values)) if values else None


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        pairs: Blocks of the reference and of the method, one behind the other.
        steps: Of a block.
        fresh: Each block in a process of its own.
        memory: Also the peak memory.
    """

    pairs: int = 5
    steps: int = 3
    fresh: bool = False
    memory: bool = True

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.steps < 1:
            raise UsageError(
                f"at least one pair of one step is measured; got {self.pairs} pairs of "
                f"{self.steps}"
            )


def clock(device: torch.device) -> float:
    """Seconds that count on a device; on CUDA it waits for what was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def block_seconds(training: Training, steps: int) -> float:
    """Seconds of a step, mean over a block."""
    start = clock(training.device)
    for _ in range(steps):
        training.step()
    return (clock(training.device) - start) / steps


def fresh_block_seconds(setting: Setting, steps: int) -> float:
    """The same of a training that is built for it, after one step."""
    training = Training(setting)
    training.step()
    return block_seconds(training, steps)


def peak_memory(setting: Setting) -> float:
    """MiB of two steps, see :class:`StepFigures`; for a process of its own."""
    training = Training(setting)
    training.step()
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        training.step()
        return torch.cuda.max_memory_allocated() / MIB
    training.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(function: Callable, *args: object) -> object:
    """What a function returns in a process that has the imports and nothing else."""
    scripts.prepare(torch.get_num_threads())
    with ProcessPoolExecutor(1, mp_context=scripts.CONTEXT) as pool:
        return pool.submit(function, *args).result()


def describe(training: Training) -> StepFigures:
    """Arithmetic and waits; takes two steps."""
    model = module_of(training.runner)
    lowest = floor(needed_passes(model), count_parts(training))
    flops = count_flops(training.step)
    with counting_waits(training.device, training.tensors()) as waits:
        training.step()
    return StepFigures(training.setting.name, flops, lowest, dict(waits))


def compare(settings: Sequence[Setting], effort: Effort) -> Iterator[StepFigures]:
    """Measures each setting against the first, in turns; yields them as they are done.

    Args:
        settings: The reference first. It is compared with itself, too.
        effort: How much.
    """
    reference = Training(settings[0])
    first = describe(reference)
    for setting in settings:
        if setting == settings[0]:
            training = reference
            found = replace(first, seconds=[], base_seconds=[])
        else:
            training = Training(setting)
            found = describe(training)
        found.flops_ratio = found.flops / first.flops
        found.floor_ratio = found.floor / first.floor
        for _ in range(effort.pairs):
            found.base_seconds.append(_block(reference, effort))
            found.seconds.append(_block(training, effort))
        if effort.memory:
            found.memory = in_fresh_process(peak_memory, setting)
        progress.count()
        yield found
        del training  # before the next one is built
        gc.collect()


def _block(training: Training, effort: Effort) -> float:
    progress.count()
    if effort.fresh:
        return in_fresh_process(fresh_block_seconds, training.setting, effort.steps)
    return block_seconds(training, effort.steps)


def profile(setting: Setting, steps: int = 3) -> list[dict]:
    """The ten largest entries of a step by their own time on the device.

    Returns:
        Dicts with ``name``, ``milliseconds`` and ``share`` (of all entries) of a step,
        and ``calls`` in a step.
    """
    training = Training(setting)
    training.step()
    on_cuda = training.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    clock(training.device)  # the step before is done
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            training.step()
        clock(training.device)
    what = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    entries = profiler.key_averages()
    total = sum(getattr(entry, what) for entry in entries)
    largest = sorted(entries, key=lambda entry: -getattr(entry, what))[:10]
    return [
        dict(
            name=entry.key,
            milliseconds=getattr(entry, what) / steps / 1000,
            share=getattr(entry, what) / total,
            calls=entry.count / steps,
        )
        for entry in largest
    ]


VARIED = {"modalities": "modalities", "clip-length": "clip_length", "batch": "batch"}
"""What a sweep may vary -> the field of :class:`.Setting`."""


def varied(setting: Setting, what: str, values: Sequence[int]) -> list[Setting]:
    """The setting at each value.

    Raises:
        UsageError: For something else, or a number that cannot be.
    """
    if what not in VARIED:
        raise UsageError(f"--vary {what}: can be one of {', '.join(VARIED)}")
    least = 2 if what == "modalities" else 1
    if not values or min(values) < least:
        raise UsageError(
            f"--vary {what} takes numbers from {least} on; got {list(values)}"
        )
    return [replace(setting, **{VARIED[what]: value}) for value in values]
