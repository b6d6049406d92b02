"""Makes a frame store: every clip of a config's data sets is decoded once.

Each clip is read by the transforms of the config's own datasets up to the one that
decodes, so that what is stored is what training would have seen, and made smaller by
the pipeline's own ``Resize`` where all pipelines begin with the same one. Images that
have that size already (EPIC-Kitchens' frames) are taken over byte by byte. Of sound
whose part is the same in every epoch the spectrogram is stored.

An entry gets its name when it is complete. The same command goes on after a kill, and
makes again what a changed source has made stale.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import shutil
import signal
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmaction.datasets.transforms import Resize
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from ..cli.data import quiet, set_datasets
from ..cores import usable_cores
from ..datasets import (
    MissingModalityError,
    MultiModalDataset,
    UnreadableMediaError,
    stored_sound,
)
from ..datasets.frame_store import (
    FORMAT,
    SETTINGS,
    Clip,
    StoredClip,
    StoreSettings,
    digest_at,
    digest_now,
    entry_path,
    finish,
    has_content,
    image_name,
    leading_short_side,
    sampler_of,
)
from ..datasets.presence import is_there
from ..datasets.stored_sound import signature, sound_of, spectrogram_steps
from ..datasets.transforms.images import decode_image
from ..errors import Terminated, UsageError, sigterm_raises
from ..parallel import Outcome, run_parallel
from ..progress import Meter, duration
from .check import (
    Item,
    build_datasets,
    decode_in_pieces,
    item_dataset,
    pickle_alone,
    refuse_sizes,
)
from .extraction import INTERRUPTED, claim

MADE, REMADE, THERE, FAILED = "made", "made anew", "already there", "failed"

_SAMPLED = 24
"""Entries of which a dry run measures the size."""

_SECONDS = 3600.0  # one clip may take this long
_SHOWN = 20  # problems that are printed
_FULL = (errno.ENOSPC, errno.EDQUOT)


# --------------------------------------------------------------------------------
# One entry


def note_clip(results: dict) -> dict:
    """Stands first: later transforms add what the row did not say."""
    return dict(results, clip=Clip.of(results["filename"], results))


@dataclass(frozen=True)
class Target:
    """Where the entries of a store go.

    Attributes:
        settings: Of the store.
        root: The store.
        data_root: The data set's folder.
    """

    settings: StoreSettings
    root: str
    data_root: str

    def begin(self, modality: str, clip: Clip, fps: float) -> tuple[Path, dict]:
        """An entry's file, and what it says of itself and of its sources.

        To be called before the sources are read: what changes meanwhile is found stale.
        """
        path = Path(entry_path(self.root, self.data_root, modality, clip))
        settings = self.settings.of(modality)
        facts = dict(format=FORMAT, settings=settings, first=clip.first, fps=fps)
        return path, facts | made_of(clip)


@dataclass(frozen=True)
class PackFrames:
    """Stands behind a pipeline's opening transforms and writes all frames.

    Leaves the number of bytes as what the pipeline made.

    Attributes:
        decode: The transforms behind the sampler.
        resize: The pipeline's own, or None to keep the size.
        target: Where to.
    """

    decode: Sequence[Callable[[dict], dict]]
    resize: Resize | None
    target: Target

    def __call__(self, results: dict) -> dict:
        """Writes the entry of a clip.

        Raises:
            UnreadableMediaError: If it cannot be decoded.
        """
        clip, fps = results["clip"], float(results.get("avg_fps") or 0)
        path, facts = self.target.begin(results["modality_key"], clip, fps)
        with complete(path) as new, zipfile.ZipFile(new, "w") as archive:
            images = self._images_of_size(clip, results)
            if images is None:
                facts |= self._decode(archive, clip, results)
            else:
                facts |= self._copy(archive, clip, images)
            finish(archive, facts)
        return dict(results, imgs=np.array([path.stat().st_size]))

    @property
    def _short_side(self) -> float:
        return min(self.resize.scale) if self.resize else math.inf

    def _images_of_size(self, clip: Clip, results: dict) -> list[bytes] | None:
        """The files of a clip of images, if none has to be made smaller."""
        if os.path.splitext(clip.template)[1].lower() not in (".jpg", ".jpeg", ".png"):
            return None
        images, sizes = [], set()
        for name in clip.images(clip.numbers):
            try:
                data = Path(name).read_bytes()
                shape = decode_image(data).shape  # refuses damage
            except (OSError, ValueError) as error:
                raise UnreadableMediaError.of(results, error, file=name) from error
            if min(shape[:2]) > self._short_side:
                return None
            images.append(data)
            sizes.add(shape[:2])
        refuse_sizes(results, sizes)
        return images

    @staticmethod
    def _copy(archive: zipfile.ZipFile, clip: Clip, images: list[bytes]) -> dict:
        parts = "xy"[: len(clip.files)] if len(clip.files) > 1 else ("",)
        suffix = os.path.splitext(clip.template)[1]
        # The files come folder by folder.
        folders = [images[i * clip.frames :][: clip.frames] for i in range(len(parts))]
        for number, those in zip(clip.numbers, zip(*folders, strict=True), strict=True):
            for part, data in zip(parts, those, strict=True):
                archive.writestr(image_name(number, part, suffix), data)
        return dict(frames=clip.frames, components=len(parts))

    def _decode(self, archive: zipfile.ZipFile, clip: Clip, results: dict) -> dict:
        numbers = np.asarray(clip.numbers)
        if clip.frames is None:
            # The published loaders count a frame less, and reach all of the file.
            _, length = results.get("decode_shift", (0, results["total_frames"]))
            numbers = np.arange(length)
        parts, sizes, settings = (), set(), self.target.settings
        for piece in decode_in_pieces(self.decode, results, numbers):
            if self.resize and min(piece["img_shape"]) > self._short_side:
                piece = self.resize(piece)
            for number, image in zip(piece["frame_inds"], piece["imgs"], strict=True):
                sizes.add(image.shape[:2])
                parts = ("x", "y") if image.shape[-1] == 2 else ("",)
                planes = np.moveaxis(image, -1, 0) if len(parts) > 1 else (image,)
                for part, plane in zip(parts, planes, strict=True):
                    suffix = settings.suffix(grey=bool(part))
                    data = encode_image(plane, suffix, settings.quality)
                    archive.writestr(image_name(int(number), part, suffix), data)
        refuse_sizes(results, sizes)
        return dict(frames=len(numbers), components=len(parts))


@dataclass(frozen=True)
class PackSpectrogram:
    """All of a pipeline: it makes a spectrogram, writes it, and leaves its bytes.

    Attributes:
        steps: The transforms that make it.
        target: Where to.
    """

    steps: Sequence[Callable[[dict], dict]]
    target: Target

    def __call__(self, results: dict) -> dict:
        """Writes the entry of a clip; one that says so for a clip without sound.

        Raises:
            UnreadableMediaError: If it cannot be read.
        """
        clip = sound_of(results, results["filename"], self.steps)
        path, facts = self.target.begin(results["modality_key"], clip, fps=0.0)
        try:
            for step in self.steps:
                results = step(results)
            content, own = stored_sound.encode(results)
        except MissingModalityError:
            content, own = stored_sound.encode(None)
        with complete(path) as new, zipfile.ZipFile(new, "w") as archive:
            archive.writestr("spectrogram.npy", content)
            finish(archive, facts | own | dict(frames=1, components=1))
        return dict(results, audios=np.array([path.stat().st_size]))


def encode_image(image: np.ndarray, suffix: str, quality: int) -> bytes:
    """One image as a file.

    Args:
        image: ``(H, W, 3)`` RGB, or ``(H, W)``; uint8.
        suffix: Says the format.
        quality: Of JPEG.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, np.ascontiguousarray(image), options)
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return data.tobytes()


def made_of(clip: Clip) -> dict:
    """What an entry says of its sources."""
    stamp = clip.stamp()
    return dict(stamp=stamp, sha256=digest_now(clip, stamp))


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A name to write to; it becomes ``path`` when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = unfinished(path)
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """The name of an entry that is being written."""
    return path.with_name(f".{path.name}.part")


# --------------------------------------------------------------------------------
# What there is to do


class Entry(NamedTuple):
    """An entry to be made: what is read, and where it goes."""

    item: Item
    modality: str
    clip: Clip
    path: Path


def store_settings(
    cfg: Config, codec: str = "jpeg", quality: int = 92
) -> StoreSettings:
    """The settings of a store for a config.

    Frames get the size with which all pipelines of a modality begin; where they differ,
    or one begins otherwise, they keep that of the source. Spectrograms are stored where
    all pipelines make them alike, of the same part of the sound in every epoch.

    Raises:
        UsageError: As :func:`.check.build_datasets`, or for a quality out of range.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"--quality: from 1 to 100, got {quality}")
    sizes: dict[str, set[int | None]] = {}
    sounds: dict[str, list[list]] = {}
    with quiet():
        datasets = [dataset for *_, dataset in build_datasets(without_store(cfg))]
    for dataset in datasets:
        for modality, transforms in dataset.pipelines.items():
            if dataset.MODALITY_TYPES[modality] != "Audio":
                found = sizes.setdefault(modality, set())
                found.add(leading_short_side(transforms))
            else:
                steps = spectrogram_steps(transforms)
                made = signature(steps, dataset.sampling) if steps else None
                sounds.setdefault(modality, []).append(made)
    one = {m: found.pop() if len(found) == 1 else None for m, found in sizes.items()}
    same = {
        modality: first
        for modality, (first, *others) in sounds.items()
        if first is not None and all(other == first for other in others)
    }
    return StoreSettings(codec, quality, one, same)


def without_store(cfg: Config) -> Config:
    """A config whose data sets read the sources."""
    cfg = cfg.copy()
    set_datasets(cfg, frame_store=None)
    return cfg


def entries_of(cfg: Config, settings: StoreSettings, root: Path) -> list[Entry]:
    """The entries of all clips that a config's data sets read, each once.

    Clips without a modality have none; sound has some if its spectrograms are stored.

    Raises:
        UsageError: As :func:`.check.build_datasets`.
        FrameStoreError: If a source lies outside the data set's folder.
    """
    found: dict[Path, Entry] = {}
    with quiet():
        datasets = list(build_datasets(without_store(cfg)))
    for _, config, dataset in datasets:
        alone = {
            m: _pickled(config, dataset, m, settings, str(root))
            for m in dataset.modalities
            if m in settings.short_sides or _makes(dataset, m, settings)
        }
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            for modality, pickled in alone.items():
                files = info["files"].get(modality)
                if files is None:
                    continue
                if modality in settings.spectrograms:
                    clip = sound_of(info, files, dataset.pipelines[modality])
                else:
                    clip = Clip.of(files, info.get("extras", {}).get(modality, {}))
                if not all(map(is_there, clip.files)):
                    continue
                item = Item(pickled, index, clip.files)
                path = Path(entry_path(str(root), dataset.data_root, modality, clip))
                found.setdefault(path, Entry(item, modality, clip, path))
    return list(found.values())


def _makes(dataset: MultiModalDataset, modality: str, settings: StoreSettings) -> bool:
    """Whether a data set makes a modality's spectrograms as a store has them."""
    steps = spectrogram_steps(dataset.pipelines[modality])
    kept = settings.spectrograms.get(modality)
    return bool(steps) and kept == signature(steps, dataset.sampling)


def _pickled(
    config: dict,
    dataset: MultiModalDataset,
    modality: str,
    settings: StoreSettings,
    root: str,
) -> bytes:
    steps = dataset.pipelines[modality]
    target = Target(settings, root, dataset.data_root)
    if modality in settings.spectrograms:
        steps = spectrogram_steps(steps)
        return pickle_alone(config, modality, [PackSpectrogram(steps, target)])
    place = sampler_of(steps)
    small = settings.short_sides[modality] is not None
    resize = steps[place + 2] if small else None
    write = PackFrames(steps[place + 1 :], resize, target)
    return pickle_alone(config, modality, [note_clip, *steps[:place], write])


class Made(NamedTuple):
    """An entry that was made: its size in bytes, and the CPU seconds that it took."""

    size: int
    seconds: float


def make(entry: Entry) -> Made:
    """Makes an entry."""
    with quiet():
        dataset = item_dataset(entry.item.dataset)
    begin = time.process_time()
    sample = dataset.prepare_data(entry.item.index)
    size = int(sample["inputs"][entry.modality].item())
    return Made(size, time.process_time() - begin)


def state_of(entry: Entry, settings: StoreSettings, thorough: bool = False) -> str:
    """Whether an entry is there and is what it should be.

    Args:
        entry: The entry.
        settings: Of the store.
        thorough: Read its sources and itself as a whole.

    Returns:
        ``'missing'``, ``'stale'``, ``'damaged'`` or ``''``.
    """
    if not entry.path.exists():
        return "missing"
    try:
        stored = StoredClip(str(entry.path), decode_image)
        if stored.facts["settings"] != settings.of(entry.modality):
            return "stale"
        if thorough and not stored.intact():
            return "damaged"
        touched = entry.clip.stamp() != stored.facts["stamp"]
        if (thorough or touched) and not has_content(entry.clip, stored.facts):
            return "stale"
    except ValueError:
        return "damaged"
    return ""


# --------------------------------------------------------------------------------
# A whole run


def pack(
    cfg: Config,
    out: Path | str,
    settings: StoreSettings,
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> int:
    """Makes what a store lacks, with a progress bar and a summary.

    Args:
        cfg: Its data sets say which clips.
        out: The store.
        settings: How.
        workers: Processes. Defaults to one for each core that may be used.
        dry_run: Say what would be done, how much room it takes and how long.
        overwrite: Also over a store of other settings.

    Returns:
        The exit code: 0, 1 if a clip failed, 130 after Ctrl-C.

    Raises:
        UsageError: If the request cannot work, or the disk is full.
    """
    out = Path(out)
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, needs at least 1")
    _refuse_other_settings(out, settings, overwrite)
    settings = _with_what_is_there(out, settings, overwrite)
    entries = entries_of(cfg, settings, out)
    if not entries:
        raise UsageError("the config's data sets have nothing to pack")
    states = {entry: state_of(entry, settings) for entry in entries}
    todo = [entry for entry, state in states.items() if state]
    if todo:
        _foresee(cfg, out, settings, todo, workers)
    results = {entry: THERE for entry, state in states.items() if not state}
    if dry_run:
        print(
            f"dry run, nothing written; {len(results):,} of {len(entries):,} are there"
        )
        return 0
    code = 0
    with claim(out / SETTINGS, "frames") as file, sigterm_raises():
        file.truncate(0)
        file.write(settings.text())
        file.flush()
        reasons: dict[Entry, str] = {}
        try:
            for entry, reason in _made(todo, workers):
                anew = MADE if states[entry] == "missing" else REMADE
                results[entry] = FAILED if reason else anew
                reasons |= {entry: reason} if reason else {}
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Terminated:
            code = 128 + signal.SIGTERM
    _report(out, results, reasons, len(entries) - len(results))
    if code:
        print("Interrupted. The same command goes on from here.")
    return code or int(bool(reasons))


def _refuse_other_settings(out: Path, settings: StoreSettings, overwrite: bool) -> None:
    file = out / SETTINGS
    if overwrite or not file.exists() or not file.stat().st_size:
        return
    there = StoreSettings.load(str(out))
    both = there.spectrograms.keys() & settings.spectrograms.keys()
    sounds = [m for m in both if there.spectrograms[m] != settings.spectrograms[m]]
    if sounds:
        raise UsageError(
            f"{out} holds spectrograms of {', '.join(sounds)} that were made as "
            f"{there.spectrograms[sounds[0]]}; this config makes them as "
            f"{settings.spectrograms[sounds[0]]}: name another folder, or replace all "
            "with --overwrite"
        )
    if there.frames != settings.frames:
        raise UsageError(
            f"{out} was made as {there.describe()}, short sides {there.short_sides}; "
            f"this would be {settings.describe()}, {settings.short_sides}: name "
            "another folder, or replace all with --overwrite"
        )


def _with_what_is_there(
    out: Path, settings: StoreSettings, overwrite: bool
) -> StoreSettings:
    """A store keeps the spectrograms that another config has put there."""
    file = out / SETTINGS
    if overwrite or not file.exists() or not file.stat().st_size:
        return settings
    there = StoreSettings.load(str(out)).spectrograms
    return replace(settings, spectrograms={**there, **settings.spectrograms})


def _foresee(
    cfg: Config, out: Path, settings: StoreSettings, todo: Sequence[Entry], workers: int
) -> None:
    """Says what room and time all will take, from a few entries made elsewhere.

    Raises:
        UsageError: If there is less room.
    """
    with tempfile.TemporaryDirectory(prefix="frame_store_") as folder:
        twins = {
            entry.path.relative_to(folder): entry
            for entry in entries_of(cfg, settings, Path(folder))
        }
        kinds: dict[str, list[Entry]] = {}
        for entry in todo:
            twin = twins[entry.path.relative_to(out)]
            kinds.setdefault(entry.modality, []).append(twin)
        # Of each modality: a clip's frames, flow and sound differ in size.
        share = math.ceil(_SAMPLED / len(kinds))
        chosen = [e for own in kinds.values() for e in own[:: -(-len(own) // share)]]
        # What fails will be reported when it is made.
        made: dict[str, list[Made]] = {}
        for entry, value, _ in _run(chosen, workers):
            if value:
                made.setdefault(entry.modality, []).append(value)
    if not made:
        return
    size, seconds = (
        sum(
            sum(one[place] for one in own) / len(own) * len(kinds[modality])
            for modality, own in made.items()
        )
        for place in range(2)
    )
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    print(
        f"{out}: {len(todo):,} entries to make, {settings.describe()}, about "
        f"{byte_text(size)} ({byte_text(free)} are free) and "
        f"{duration(seconds / workers)} with {workers} processes"
    )
    if size > free:
        raise UsageError(
            f"about {byte_text(size)} are needed in {out}, and {byte_text(free)} are "
            "free: make room, lower --quality, or name another folder by --out"
        )


def _run(entries: Sequence[Entry], workers: int) -> Generator[Outcome, None, None]:
    """Makes entries in processes, which a decoder may kill; with one worker in this."""
    workers = max(1, min(workers, len(entries)))
    running = run_parallel(
        make,
        entries,
        workers,
        timeout=_SECONDS if workers > 1 else None,
        abandoned=lambda entry: unfinished(entry.path).unlink(missing_ok=True),
    )
    with closing(running):
        yield from running


def _made(
    todo: Sequence[Entry], workers: int
) -> Generator[tuple[Entry, str], None, None]:
    """Makes entries, and yields each with what failed, or ``''``."""
    with Meter("packing", "clips", len(todo), workers) as meter:
        with closing(_run(todo, workers)) as running:
            for entry, _, error in running:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise UsageError(
                        f"{entry.path}: {error.strerror}; make room, and the same "
                        "command goes on from here"
                    )
                meter.add(1)
                yield entry, " ".join(str(error).split()) if error else ""


def verify(cfg: Config, out: Path | str, workers: int | None = None) -> int:
    """Reads every source and every entry of a store again, and says what is wrong.

    Returns:
        The exit code: 0, or 1 if the store is not what the sources say.

    Raises:
        UsageError: If it is no store.
    """
    out = Path(out)
    digest_at.cache_clear()  # what was read before may have changed
    settings = StoreSettings.load(str(out))
    entries = entries_of(cfg, settings, out)
    workers = max(1, min(workers or usable_cores(), len(entries)))
    look = functools.partial(state_of, settings=settings, thorough=True)
    wrong = []
    with Meter("verifying", "clips", len(entries), workers) as meter:
        with closing(run_parallel(look, entries, workers)) as running:
            for entry, state, error in running:
                meter.add(1)
                if state or error:
                    wrong.append(f"{entry.path}: {state or error}")
    for line in sorted(wrong)[:_SHOWN]:
        print(line)
    print(
        f"{out}: {len(wrong):,} of {len(entries):,} entries are not as they should be"
    )
    return int(bool(wrong))


def _report(
    out: Path, results: Mapping[Entry, str], reasons: Mapping[Entry, str], left: int
) -> None:
    table = Table(title=f"{out}: entries")
    columns = (THERE, MADE, REMADE, FAILED)
    for name in ("", *columns, "size"):
        table.add_column(name, justify="right" if name else "left")
    for modality in dict.fromkeys(entry.modality for entry in results):
        own = [entry for entry in results if entry.modality == modality]
        counts = Counter(results[entry] for entry in own)
        size = sum(e.path.stat().st_size for e in own if e.path.exists())
        cells = [f"{counts[name]:,}" for name in columns]
        table.add_row(modality, *cells, byte_text(size))
    Console().print(table)
    for entry, reason in list(reasons.items())[:_SHOWN]:
        print(f"{entry.item.files[0]}: {reason}")
    if len(reasons) > _SHOWN:
        print(f"... and {len(reasons) - _SHOWN} more")
    if left:
        print(f"{left:,} entries were not reached")
    elif not reasons:
        print(f"To train from it: --frame-store {out}")


def byte_text(size: float) -> str:
    """A number of bytes as people say it: ``'1.2 GB'``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
