"""Whether a config can be trained: all its data are read, as training reads them.

Every clip is read by the transforms of the config's own datasets, one modality at a
time, up to the one that decodes; where training samples some frames, all are decoded.
So what these transforms refuse is found, and nothing else: pictures that are wrong but
decode pass, as they do in training.

============ ==========================================================================
kind         what it means
============ ==========================================================================
missing      no such file or folder, or the split names none
damaged      a transform refuses it: 0 bytes, cut off, frames that are not there or
             differ in size, sound with NaN, a segment behind the file's end, ...
silent       a sound file in which the clip's time is silent, or not recorded
timeout      it was not read within some minutes
crash        the decoder killed its process
============ ==========================================================================

What stops a training is a problem here, and what it admits is not: docs/data.md has the
table. A missing or silent modality is admitted where it is one of
``optional_modalities``, unless no clip of a domain and split has it. That a modality
ends early is a note.
"""

import csv
import functools
import math
import multiprocessing
import os
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from mmaction.datasets.transforms import SampleFrames
from mmaction.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich import box
from rich.console import Console
from rich.table import Table

from ..cli.data import (
    SPLITS,
    described_domains,
    first_dataset,
    innermost_datasets,
)
from ..cli.run import weights_problem
from ..cores import keep_freed_memory_of_a_worker, usable_cores
from ..datasets import MultiModalDataset, UnreadableMediaError
from ..datasets.durations import EARLY, ending_early, seconds_of
from ..datasets.presence import absence_lines, is_there, unadmitted
from ..errors import UsageError
from ..parallel import WorkerDiedError, WorkerTimeoutError, run_parallel
from ..progress import Meter

KINDS = ("missing", "damaged", "silent", "timeout", "crash")

ABSENT = ("missing", "silent")
"""Those that training admits where the modality is optional."""

COLUMNS = ("domain", "class", "sample_id", "modality", "kind", "file", "reason")
"""Of the CSV file. Its kinds are those above, ``admitted`` and ``note``."""

SHOWN = 20
"""Problems that are printed; the CSV file has all."""

_SECONDS = 300.0  # one modality of one clip may take this long
_MEMORY = 128 << 20  # bytes of frames that are decoded at once


# --------------------------------------------------------------------------------
# One modality of one clip


class DecodeAll:
    """Decodes all frames of a clip, where training would sample some.

    Args:
        decode: The transforms behind the sampler. Those behind the first that leaves
            ``imgs`` are not run.
        quick: The first, the middle and the last frame only.
    """

    def __init__(self, decode: Sequence[Callable[[dict], dict]], quick: bool) -> None:
        self.decode, self.quick = tuple(decode), quick

    def __call__(self, results: dict) -> dict:
        """Decodes in pieces, since a clip may be long."""
        first, total = results["start_index"], results["total_frames"]
        if "decode_shift" in results:  # the published loaders reach all of the file
            first, total = 0, results["decode_shift"][1]
        if total < 1:
            raise UnreadableMediaError.of(results, f"the clip has {total} frames")
        numbers = np.arange(first, first + total)
        if self.quick:
            numbers = np.unique(numbers[[0, total // 2, -1]])
        sizes = set()
        for piece in decode_in_pieces(self.decode, results, numbers):
            sizes |= {image.shape[:2] for image in piece["imgs"]}
        refuse_sizes(results, sizes)
        return dict(results, total_frames=total)


def refuse_sizes(results: dict, sizes: set[tuple[int, int]]) -> None:
    """Refuses a clip whose frames differ in size.

    Raises:
        UnreadableMediaError: Saying the sizes ``(h, w)``.
    """
    if len(sizes) > 1:
        reason = f"its frames differ in size (h, w): {sorted(sizes)}"
        raise UnreadableMediaError.of(results, reason)


def decode_in_pieces(
    decode: Sequence[Callable[[dict], dict]], results: dict, numbers: np.ndarray
) -> Iterator[dict]:
    """Decodes frames by number, some at a time, since a clip may be long.

    Args:
        decode: The transforms behind the sampler. Those behind the first that leaves
            ``imgs`` are not run.
        results: As they came to the sampler.
        numbers: ``(N,)``.

    Yields:
        The results, with ``frame_inds`` and ``imgs`` of one piece.
    """
    count = 1
    while len(numbers):
        found = dict(results, frame_inds=numbers[:count])
        for transform in decode:
            found = transform(found)
            if "imgs" in found:
                break
        else:
            raise ValueError("no transform behind the sampler leaves imgs")
        yield found
        numbers, count = numbers[count:], max(_MEMORY // found["imgs"][0].nbytes, 1)


def leave_seconds(results: dict) -> dict:
    """Leaves the clip's length as what the pipeline made; NaN where it is not known."""
    return dict(results, imgs=np.array([seconds_of(results)]))


def read_whole(transforms: Sequence[Callable], quick: bool) -> list[Callable]:
    """The pipeline that reads all of a clip and leaves its length."""
    for place, step in enumerate(transforms):
        if isinstance(step, SampleFrames):
            return [
                *transforms[:place],
                DecodeAll(transforms[place + 1 :], quick),
                leave_seconds,
            ]
    return [*transforms, leave_seconds]


class Item(NamedTuple):
    """One modality of one clip, to be read."""

    dataset: bytes  # pickled settings of a dataset with this modality alone
    index: int  # the clip's
    files: tuple[str, ...]  # or folders


class Reading(NamedTuple):
    """What reading an item gave: its length (s), or one of :data:`KINDS`."""

    kind: str = ""
    file: str = ""
    reason: str = ""
    seconds: float = math.nan


def pickle_alone(settings: dict, modality: str, pipeline: Sequence[Callable]) -> bytes:
    """Settings of a dataset with one modality, whose every fault is an error.

    Args:
        settings: Of the dataset, its class as ``type``.
        modality: The one.
        pipeline: What is done with it, instead of the dataset's.
    """
    changes = dict(
        pipelines={modality: list(pipeline)},
        modalities=[modality],
        optional_modalities=(),
        absent_ok=(),
        on_error="raise",
        views=1,
        serialize_data=False,
    )
    return pickle.dumps(settings | changes)


@functools.cache
def item_dataset(pickled: bytes) -> MultiModalDataset:
    """The dataset of an item, built once in each process."""
    if multiprocessing.parent_process() is not None:
        # What libjpeg, FFmpeg and the datasets say would get into the progress bar.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        keep_freed_memory_of_a_worker()
    settings = pickle.loads(pickled)
    return settings.pop("type")(**settings)


def read(item: Item) -> Reading:
    """Reads one modality of one clip."""
    dataset = item_dataset(item.dataset)
    row, (modality,) = dataset.get_data_info(item.index), dataset.modalities
    try:
        sample = dataset.prepare_data(item.index)
    except FileNotFoundError as error:  # a MissingModalityError, with advice
        kind = "silent"
        if not item.files or not all(map(is_there, item.files)):
            kind = "missing"
        return _refused(item, kind, error.__cause__ or error)
    except UnreadableMediaError as error:
        told = f"cannot read {modality} of sample {row['sample_id']!r} from "
        return _refused(item, "damaged", str(error).removeprefix(told))
    except Exception as error:
        return _refused(item, "damaged", f"{type(error).__name__}: {error}")
    return Reading(seconds=sample["inputs"][modality].item())


def _refused(item: Item, kind: str, error: object) -> Reading:
    reason = " ".join(str(error).split())
    file = next((f for f in item.files if f in reason), (*item.files, "")[0])
    return Reading(kind, file, reason)


def read_all(items: Iterable[Item], workers: int) -> dict[Item, Reading]:
    """Reads every item, in processes that a decoder may kill."""
    items, readings = list(items), {}
    total = sum(len(item.files) for item in items)
    with Meter("checking", "files", total, workers) as meter:
        with closing(run_parallel(read, items, workers, timeout=_SECONDS)) as running:
            for item, reading, error in running:
                if isinstance(error, WorkerTimeoutError):
                    reading = _refused(item, "timeout", error)
                elif isinstance(error, WorkerDiedError):
                    reading = _refused(item, "crash", error)
                elif error is not None:
                    raise error
                readings[item] = reading
                meter.add(len(item.files))
    return readings


# --------------------------------------------------------------------------------
# The rows of a config


class Row(NamedTuple):
    """A row of the dataset that one split's loader has."""

    group: tuple[str, str, str]  # domain, role, split
    label: str  # the name of its class
    sample_id: str
    optional: tuple[str, ...]  # modalities that it may lack
    items: dict[str, Item]  # of each modality


def build_datasets(cfg: Config) -> Iterator[tuple[str, dict, MultiModalDataset]]:
    """Builds the datasets of a config: the loader's split, the settings, the dataset.

    Raises:
        UsageError: If there is none, one cannot be built, with its own message, or one
            is not a :class:`MultiModalDataset`.
    """
    init_default_scope(cfg.get("default_scope") or "mmaction")
    loaders = {split: cfg.get(f"{split}_dataloader") for split in SPLITS}
    if not any(loaders.values()):
        raise UsageError(
            "the config has no train_dataloader, val_dataloader or test_dataloader: "
            "there is nothing to check"
        )
    used = {split: loader["dataset"] for split, loader in loaders.items() if loader}
    for split, outer in used.items():
        for settings in innermost_datasets(outer):
            try:
                # Serialised rows save workers' memory; making them collects garbage.
                light = dict(lazy_init=True, serialize_data=False)
                dataset = DATASETS.build(dict(settings) | light)
                dataset.full_init()
            except (ValueError, TypeError, KeyError, OSError) as error:
                raise UsageError(f"{split}_dataloader: {error}") from error
            if not isinstance(dataset, MultiModalDataset):
                raise UsageError(
                    f"{split}_dataloader: {type(dataset).__name__} is not a "
                    "MultiModalDataset, so it is not known which files it reads"
                )
            yield split, dict(settings, type=type(dataset)), dataset


class Absence(NamedTuple):
    """Clips that lack a modality."""

    text: str
    stops: bool  # a training does not start


def absences_of(dataset: MultiModalDataset) -> Iterator[Absence]:
    """What the dataset itself would refuse, or say, when it is built."""
    found = dataset.look_for_files()
    lost = unadmitted(found, dataset.absent_ok)
    for each in lost:
        yield Absence(
            f"no {each.split} clip of {each.domain} has {each.modality}: is its folder "
            "where the dataset looks for it? If there really is none, training needs "
            f"absent_ok=({each.modality!r},) of the datasets",
            True,
        )
    rest = [each for each in found if each not in lost]
    for line in absence_lines(rest, dataset.absent_warning):
        yield Absence(line, False)


def collect(
    cfg: Config, quick: bool = False, absences: list[Absence] | None = None
) -> list[Row]:
    """The rows of all datasets of a config.

    Args:
        cfg: The config.
        quick: Three frames of a clip.
        absences: Gets what is absent, if given.

    Raises:
        UsageError: As :func:`build_datasets`.
    """
    rows = []
    for split, settings, dataset in build_datasets(cfg):
        alone = {
            modality: pickle_alone(settings, modality, read_whole(steps, quick))
            for modality, steps in dataset.pipelines.items()
        }
        classes, optional = dataset.metainfo["classes"], dataset.optional_modalities
        if absences is not None:
            absences += absences_of(dataset)
        for index in range(len(dataset)):
            info, items = dataset.get_data_info(index), {}
            for modality, pickled in alone.items():
                names = info["files"].get(modality) or ()
                files = (names,) if isinstance(names, str) else tuple(names)
                items[modality] = Item(pickled, index, files)
            group = info["domain"], info["role"], split
            label = str(classes[info["label"]])
            rows.append(Row(group, label, info["sample_id"], optional, items))
    return rows


# --------------------------------------------------------------------------------
# Report


class Finding(NamedTuple):
    """A line of the CSV file, see :data:`COLUMNS`."""

    domain: str
    label: str
    sample_id: str
    modality: str
    kind: str
    file: str
    reason: str


def findings_of(row: Row, readings: Mapping[Item, Reading]) -> Iterator[Finding]:
    """What is to be said about a row."""
    own = {modality: readings[item] for modality, item in row.items.items()}
    # Without any modality there is nothing to recognize a clip by.
    nothing = all(reading.kind in ABSENT for reading in own.values())
    early = dict(ending_early({m: reading.seconds for m, reading in own.items()}))
    for modality, (kind, file, reason, _) in own.items():
        if kind in ABSENT and modality in row.optional and not nothing:
            kind = "admitted"
        if not kind and modality in early:
            kind, file = "note", row.items[modality].files[0]
            reason = f"it ends {early[modality]:.1f} s before another modality"
        if kind:
            clip = row.group[0], row.label, row.sample_id
            yield Finding(*clip, modality, kind, file, reason)


def overview(rows: Iterable[Row], readings: Mapping[Item, Reading]) -> Table:
    """Clips of each domain and split that have each modality."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    modalities = dict.fromkeys(m for own in groups.values() for m in own[0].items)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("domain", "role", "split", "clips", *modalities):
        table.add_column(name, overflow="fold")
    for (domain, role, split), own in groups.items():
        cells = []
        for modality in modalities:
            items = [row.items[modality] for row in own if modality in row.items]
            counts = Counter(readings[item].kind for item in items)
            share = counts["missing"] / len(own)
            names = {"": "ok", "missing": f"missing ({share:.0%})"}
            parts = [
                f"{counts[kind]} {names.get(kind, kind)}"
                for kind in ("", *KINDS)
                if counts[kind]
            ]
            cells.append(", ".join(parts))
        table.add_row(domain, role, split, str(len(own)), *cells)
    return table


def summary(
    findings: Sequence[Finding], allow: Iterable[str], csv_file: str | None
) -> Iterator[str]:
    """Lines about the notes and the first problems."""
    notes = Counter(finding.modality for finding in findings if finding.kind == "note")
    for modality, count in notes.items():
        yield (
            f"{modality}: {count} clips end more than {EARLY:g} s before another "
            "modality"
        )
    problems = [finding for finding in findings if finding.kind in KINDS]
    if not problems:
        yield "no file with a problem found"
        return
    problems.sort(key=lambda finding: finding.kind in allow)
    allowed = sum(finding.kind in allow for finding in problems)
    yield f"{len(problems)} problem{'s' * (len(problems) > 1)}" + (
        f", {allowed} of them allowed:" if allowed else ":"
    )
    # A file that many clips share has one line.
    by_file: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in problems:
        by_file[finding.kind, finding.file].append(finding)
    for (kind, _), (first, *more) in list(by_file.items())[:SHOWN]:
        shared = f" (and {len(more)} more clips)" if more else ""
        file, colon, reason = first.reason.partition(": ")
        reason = file + colon + reason.partition(". ")[0]  # without advice
        yield f"  {kind:<8} {first.sample_id}, {first.modality}: {reason}{shared}"
    if len(by_file) > SHOWN:
        where = f"in {csv_file}" if csv_file else "(--csv FILE lists all)"
        yield f"  and {len(by_file) - SHOWN} more {where}"


def check(
    cfg: Config,
    workers: int | None = None,
    quick: bool = False,
    allow: Iterable[str] = (),
    csv_file: str | None = None,
) -> int:
    """Reads all data of a config's datasets and prints a report.

    Args:
        cfg: The config.
        workers: Processes that read; None: one for each core.
        quick: Three frames of a clip only, not all.
        allow: Kinds (of :data:`KINDS`) that are reported but do not fail.
        csv_file: Where to list all that was found, if anywhere.

    Returns:
        int: 1 if there is a problem of a kind that is not allowed, else 0; 130 after an
        interrupt.

    Raises:
        UsageError: If a dataset cannot be built, ``workers`` is not a positive number
            or the CSV file cannot be written.
    """
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise UsageError(f"--workers must be 1 or more, got {workers}")
    absences: list[Absence] = []
    rows = collect(cfg, quick, absences)
    absences = list(dict.fromkeys(absences))  # two loaders may have the same rows
    if csv_file is not None:
        try:  # not only after an hour of reading
            os.makedirs(os.path.dirname(os.path.abspath(csv_file)), exist_ok=True)
            open(csv_file, "a").close()
        except OSError as error:
            raise UsageError(f"--csv: {error}") from error
    items = [item for row in rows for item in row.items.values()]
    try:
        readings = read_all(items, workers)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; nothing is reported")
        return 130
    found = (finding for row in rows for finding in findings_of(row, readings))
    findings = list(dict.fromkeys(found))  # a clip may stand in two splits
    table = overview(rows, readings)
    if csv_file is not None:
        with open(csv_file, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *findings])
    # A log file has no width that tables must be squeezed into.
    width = None if Console().is_terminal else 120
    console = Console(width=width, markup=False, highlight=False)
    console.print(table)
    for line in (
        *(each.text for each in absences),
        *summary(findings, allow, csv_file),
    ):
        console.print(line, soft_wrap=True)
    failures = {finding.kind for finding in findings if finding.kind in KINDS}
    failures |= {"missing"} if any(each.stops for each in absences) else set()
    return int(not failures <= {*allow})


# --------------------------------------------------------------------------------
# What is found out without the data


def training_problems(cfg: Config, every_target: bool = False) -> list[str]:
    """What would stop ``tools/train.py`` once all files are there.

    Args:
        cfg: The config.
        every_target: Look at each domain as the target, not at the config's alone.

    Returns:
        list[str]: Sentences that say what helps; empty if nothing is wrong.
    """
    problems = [weights_problem(cfg), *_batch_problems(cfg, every_target)]
    return [problem for problem in problems if problem]


def _batch_problems(cfg: Config, every_target: bool) -> Iterator[str]:
    loader = cfg.get("train_dataloader")
    if not loader or not loader.get("drop_last", False):
        return
    config, batch = first_dataset(cfg), loader["batch_size"]
    targets = described_domains(cfg) if every_target else [config.get("target")]
    short = {}
    for target in targets:
        settings = config | dict(target=target, use="train", lazy_init=True)
        dataset = DATASETS.build(settings)
        if len(dataset) < batch:
            short[str(target)] = len(dataset)
    if short:
        clips = ", ".join(f"{n} (target {name})" for name, n in short.items())
        yield (
            f"there is no training batch: of {batch} clips each, incomplete ones are "
            f"left out, but the sources have {clips}. Lower it, for every target "
            f"alike: --cfg-options train_dataloader.batch_size={min(short.values())}"
        )
