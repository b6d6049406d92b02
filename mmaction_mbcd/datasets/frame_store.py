"""Frames that were decoded once: a file per clip and modality, an image per frame.

Decoding a few frames of H.264 means decoding all that they refer to. A frame store
(``tools/data/pack.py`` makes it) holds each frame as an image of its own, in the size
to which the pipelines resize it anyway, so that reading a clip is opening one file and
decoding the frames that were sampled, and no others. Sound is read from its WAV files,
which hold samples already: a part of one is one seek. Where that part is the same in
every epoch, its spectrogram lies in the store as well (:mod:`.stored_sound`).

A clip's file is a zip archive of images, uncompressed but for the images themselves,
which any tool can open; its comment says in JSON what it was made of. The sources stay
the truth: an entry whose source has changed since is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import path as osp
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmaction.datasets.transforms import Resize, SampleFrames

from .errors import DataError
from .presence import is_there

try:  # zlib's sums, in a third to an eighth of the time
    from isal.isal_zlib import crc32
except ImportError:  # a platform without wheels
    from zlib import crc32

FORMAT = 1
SETTINGS = "frame_store.json"
CODECS = {"jpeg": (".jpg", ".jpg"), "png": (".png", ".png"), "pnm": (".ppm", ".pgm")}
"""Endings of coloured and of grey images. ``pnm`` is not compressed at all."""

_ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("checksum", "<u4")])
_END_OF_ARCHIVE, _END_SIZE = b"PK\x05\x06", 22
_TAIL = 2048  # bytes that hold the comment of nearly every entry

_HELP = (
    "make it by `python tools/data/pack.py CONFIG --out {root}`, with the config and "
    "the data options of this command"
)


class FrameStoreError(DataError, ValueError):
    """A frame store does not have what is asked of it."""


class Clip(NamedTuple):
    """What an entry is made of.

    Attributes:
        files: A file, or several that belong together (a flow's components); folders
            where the frames are images.
        first: Number of the first frame.
        frames: How many, or None for all of a file.
        template: Name of an image by its number, or ``''``.
    """

    files: tuple[str, ...]
    first: int = 0
    frames: int | None = None
    template: str = ""

    @classmethod
    def of(cls, files: str | Sequence[str], facts: Mapping) -> Clip:
        """The clip of a row's files and its ``extras``, or of a pipeline's results."""
        return cls(
            (files,) if isinstance(files, str) else tuple(files),
            int(facts.get("start_index", 0)),
            facts.get("total_frames"),
            facts.get("filename_tmpl") or "",
        )

    @property
    def numbers(self) -> range:
        """The frames' numbers, where the row says them."""
        return range(self.first, self.first + (self.frames or 0))

    def images(self, numbers: Sequence[int]) -> Iterator[str]:
        """The images of some numbers, folder by folder."""
        for folder in self.files:
            yield from (osp.join(folder, self.template.format(n)) for n in numbers)

    def stamp(self) -> list[list[int]]:
        """Size (bytes) and time (ns) of the files; of images, the first and the last.

        Raises:
            OSError: If one is not there.
        """
        ends = [self.numbers[0], self.numbers[-1]] if self.template else []
        found = map(os.stat, self.images(ends) if self.template else self.files)
        return [[each.st_size, each.st_mtime_ns] for each in found]

    def digest(self) -> str:
        """SHA-256 over all that the clip is made of, 64 hexadecimal digits.

        Raises:
            OSError: If something cannot be read.
        """
        total = hashlib.sha256()
        for name in self.images(self.numbers) if self.template else self.files:
            with open(name, "rb") as file:
                while piece := file.read(1 << 20):
                    total.update(piece)
        return total.hexdigest()


@dataclass(frozen=True)
class StoreSettings:
    """How the frames of a store were made.

    Attributes:
        codec: ``'jpeg'``; ``'png'`` and ``'pnm'`` lose nothing.
        quality: Of JPEG, 1 to 100.
        short_sides: ``{modality: pixels}`` to which frames were made smaller, None
            where they have the size of the source.
        spectrograms: ``{modality: how they were made}`` of sound; see
            :func:`.stored_sound.signature`.
    """

    codec: str = "jpeg"
    quality: int = 92
    short_sides: Mapping[str, int | None] = field(default_factory=dict)
    spectrograms: Mapping[str, list] = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """Whether reading from the store gives what the sources give, to the bit."""
        return self.codec != "jpeg"

    def suffix(self, grey: bool) -> str:
        """Of the images' names."""
        return CODECS[self.codec][grey]

    def of(self, modality: str) -> list:
        """What decides over a modality's entries, as each records it."""
        if modality in self.spectrograms:
            return self.spectrograms[modality]
        quality = None if self.lossless else self.quality
        return [self.codec, quality, self.short_sides.get(modality)]

    @property
    def frames(self) -> StoreSettings:
        """Of the frames alone: how spectrograms were made changes no value."""
        return replace(self, spectrograms={})

    def describe(self) -> str:
        """In a few words, for a report."""
        loss = "lossless" if self.lossless else f"quality {self.quality}"
        return f"{self.codec.upper()}, {loss}"

    def text(self) -> str:
        """The file that a store keeps them in."""
        return json.dumps(dict(format=FORMAT, **asdict(self)), indent=2) + "\n"

    @classmethod
    def load(cls, root: str) -> StoreSettings:
        """Reads them.

        Raises:
            FrameStoreError: If the folder is no store, or of another format.
        """
        path = osp.join(root, SETTINGS)
        try:
            with open(path) as file:
                known = json.load(file)
            found = cls(**{k: v for k, v in known.items() if k != "format"})
            found.suffix(grey=False)  # an unknown codec
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise FrameStoreError(
                f"frame_store={root!r} is not a frame store ({path}: "
                f"{type(error).__name__}: {error}); {_HELP.format(root=root)}"
            ) from error
        if known.get("format") != FORMAT:
            raise FrameStoreError(
                f"frame_store={root!r} has format {known.get('format')!r}, and this "
                f"version reads {FORMAT}; {_HELP.format(root=root)}"
            )
        return found


def sampler_of(transforms: Sequence[Callable]) -> int | None:
    """The place of the transform that chooses frames; sound has none."""
    places = (i for i, each in enumerate(transforms) if isinstance(each, SampleFrames))
    return next(places, None)


def leading_short_side(transforms: Sequence[Callable]) -> int | None:
    """The short side (pixels) to which a pipeline resizes its frames before all else.

    None if it does anything else first: such frames are needed in the source's size.
    """
    sampler = sampler_of(transforms)
    behind = () if sampler is None else transforms[sampler + 2 :]  # decoding is between
    first = behind[0] if behind else None
    if not isinstance(first, Resize) or not first.keep_ratio or first.lazy:
        return None
    scale = first.scale
    if isinstance(scale, float) or not math.isinf(max(scale)):
        return None
    return int(min(scale))


class StoredClip:
    """The frames of an entry by their number, with the reading methods of a decoder.

    It reads the archive by the index that :func:`finish` left in it, since a zip
    file's own directory takes as long to parse as ten frames to decode.

    Args:
        path: The zip file.
        decode: ``(bytes, grey) -> (H, W, 3)`` or ``(H, W)`` uint8.

    Raises:
        ValueError: If it is damaged.
        FileNotFoundError: If it is not there.
    """

    def __init__(self, path: str, decode: Callable[[bytes, bool], np.ndarray]) -> None:
        self.path, self._decode = path, decode
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed with this
        self.facts = self._read_facts()
        frames, components = self.facts["frames"], self.facts["components"]
        data = self._read(self.facts["index"], frames * components * _ROW.itemsize)
        self._index = np.frombuffer(data, _ROW).reshape(frames, components)

    def _read_facts(self) -> dict[str, Any]:
        """What the comment says, which a flipped bit could turn into something else."""
        try:
            said = json.loads(self._comment())
            facts, checksum = said["facts"], said["checksum"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        if _checksum(facts) != checksum:
            raise ValueError(f"{self.path} is damaged: its comment fails its checksum")
        return facts

    def _comment(self) -> bytes:
        size = os.fstat(self._file.fileno()).st_size
        for length in (_TAIL, 1 << 17):
            start = max(size - length, 0)
            tail = bytes(self._read(start, size - start))
            place = tail.rfind(_END_OF_ARCHIVE)
            if place >= 0:
                return tail[place + _END_SIZE :]
        raise ValueError("it is no zip archive, or cut off")

    def _read(self, offset: int, size: int) -> memoryview:
        # Writable, since a transform may write into what a decoder only looks at; and
        # not a bytearray, which would be filled with zeros first.
        data = np.empty(size, np.uint8).data
        if os.preadv(self._file.fileno(), [data], offset) < size:
            raise ValueError(f"{self.path} is damaged: it is cut off")
        return data

    def __len__(self) -> int:
        """One more than the largest number."""
        return self.facts["first"] + self.facts["frames"]

    def get_avg_fps(self) -> float:
        """Frames per second; 0 where the source does not say."""
        return self.facts["fps"]

    def get_batch(self, indices: np.ndarray) -> list[np.ndarray]:
        """Decodes frames by number, each once.

        Returns:
            ``(H, W, 3)`` uint8, RGB; ``(H, W, 2)`` of flow, channel 0 is x.

        Raises:
            ValueError: If one is not there, or damaged.
        """
        frames, found = [], {}
        for number in map(int, indices):
            if number in found:  # a later transform may write into an image
                frames.append(found[number].copy())
            else:
                frames.append(self._frame(number))
                found[number] = frames[-1]
        return frames

    def intact(self) -> bool:
        """Whether every image has its checksum."""
        rows = self._index.ravel()
        return all(crc32(self._read(*row[:2])) == row[2] for row in rows.tolist())

    def _frame(self, number: int) -> np.ndarray:
        place = number - self.facts["first"]
        if not 0 <= place < len(self._index):
            raise ValueError(f"{self.path} has no frame {number}")
        rows = self._index[place].tolist()
        images = [self._image(row, len(rows) > 1) for row in rows]
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"{self.path} is damaged: its components differ in size")
        return images[0] if len(images) == 1 else cv2.merge(images)

    def _image(self, row: tuple[int, int, int], grey: bool) -> np.ndarray:
        offset, size, checksum = row
        data = self._read(offset, size)
        if crc32(data) != checksum:
            raise ValueError(f"{self.path} is damaged: a frame fails its checksum")
        return self._decode(data, grey)


def finish(archive: zipfile.ZipFile, facts: Mapping) -> None:
    """Writes an archive's index and its comment.

    Args:
        archive: With its images, frame by frame, x before y, and nothing else.
        facts: What the entry says of itself.

    Raises:
        ValueError: If there are no images.
    """
    images = archive.infolist()
    if not images:
        raise ValueError("the clip has no frames")
    rows = [
        # Behind each member's local header, which is 30 bytes and the name.
        (each.header_offset + 30 + len(each.filename), each.file_size, each.CRC)
        for each in images
    ]
    archive.writestr("index", np.array(rows, _ROW).tobytes())
    index = archive.getinfo("index").header_offset + 30 + len("index")
    facts = dict(facts, index=index)
    comment = dict(facts=facts, checksum=_checksum(facts))
    archive.comment = json.dumps(comment).encode()


def _checksum(facts: Mapping) -> int:
    return crc32(json.dumps(facts).encode())


def image_name(number: int, part: str, suffix: str) -> str:
    """Of a frame within its archive."""
    return f"{number:06d}{'_' if part else ''}{part}{suffix}"


class FrameStore:
    """A folder of entries, and the data set that it was made of.

    Args:
        root: The store.
        data_root: The data set's folder. Entries keep the relative paths of their
            sources, so that both may move.

    Raises:
        FrameStoreError: If it is not a store.
    """

    def __init__(self, root: str, data_root: str) -> None:
        self.root, self.data_root = root, data_root
        self.settings = StoreSettings.load(root)
        self._unchanged: set[str] = set()  # entries whose sources were read again

    @property
    def help(self) -> str:
        """What makes what is missing or has changed."""
        return _HELP.format(root=self.root)

    def check_pipeline(self, modality: str, transforms: Sequence[Callable]) -> None:
        """Refuses a pipeline that needs frames of another size, or that are not there.

        Raises:
            FrameStoreError: Saying both sizes, or what the store has.
        """
        kept = self.settings.short_sides
        if sampler_of(transforms) is None:
            return
        if modality not in kept:
            raise FrameStoreError(
                f"frame_store={self.root!r} holds {', '.join(kept)} and no {modality}: "
                "pack into another folder, with this config"
            )
        wanted = leading_short_side(transforms)
        if kept[modality] not in (None, wanted):
            begins = "does not begin with a Resize to a short side"
            if wanted:
                begins = f"resizes to a short side of {wanted} first"
            raise FrameStoreError(
                f"frame_store={self.root!r} holds {modality} with a short side of "
                f"{kept[modality]} pixels, and the pipeline {begins}: pack again into "
                "another folder, with this config"
            )

    def open(
        self,
        modality: str,
        clip: Clip,
        decode: Callable[[bytes, bool], np.ndarray],
        optional: bool = False,
    ) -> StoredClip | None:
        """Opens the entry of a clip; with ``optional`` None if there is none such.

        Raises:
            FrameStoreError: If there is none, or its source has changed.
            ValueError: If it is damaged.
        """
        path = entry_path(self.root, self.data_root, modality, clip)
        try:
            stored = StoredClip(path, decode)
        except FileNotFoundError:
            if optional:
                return None
            raise FrameStoreError(self._missing(path)) from None
        if stored.facts["settings"] != self.settings.of(modality):
            if optional:
                return None
            raise FrameStoreError(
                f"{path} was made with {stored.facts['settings']} (codec, quality, "
                f"short side; of sound its transforms), and {SETTINGS} says "
                f"{self.settings.of(modality)}: {self.help}"
            )
        self._refuse_stale(path, clip, stored.facts)
        return stored

    def gaps(self, rows: Sequence[Mapping], modalities: Sequence[str]) -> list[str]:
        """The entries that rows need and the store does not have: one look for each."""
        wanted = dict.fromkeys(
            path
            for row in rows
            for modality in modalities
            if (path := self._entry_of(row, modality)) is not None
        )
        return [path for path in wanted if not is_there(path)]

    def _entry_of(self, row: Mapping, modality: str) -> str | None:
        files = row["files"].get(modality)
        extras = row.get("extras", {}).get(modality, {})
        if files is None or modality not in self.settings.short_sides:
            return None
        clip = Clip.of(files, extras)
        if not all(map(is_there, clip.files)):
            return None  # the sample lacks the modality
        return entry_path(self.root, self.data_root, modality, clip)

    def _missing(self, path: str) -> str:
        return f"the frame store has no {path}: {self.help}"

    def _refuse_stale(self, path: str, clip: Clip, facts: Mapping) -> None:
        if path in self._unchanged or clip.stamp() == facts["stamp"]:
            return
        if not has_content(clip, facts):
            raise FrameStoreError(
                f"{' and '.join(clip.files)} changed after {path} was made of it: "
                f"{self.help} (it makes only what changed)"
            )
        self._unchanged.add(path)  # a touched or copied source is read once


def has_content(clip: Clip, facts: Mapping) -> bool:
    """Whether a clip's files hold what an entry was made of; reads all of them."""
    return digest_now(clip, clip.stamp()) == facts["sha256"]


def digest_now(clip: Clip, stamp: Sequence) -> str:
    """:meth:`Clip.digest`; a file that many clips share is read once in a process."""
    if clip.template:
        return clip.digest()
    return digest_at(clip.files, str(stamp))


@functools.lru_cache(maxsize=64)
def digest_at(files: tuple[str, ...], stamp: str) -> str:
    """Of whole files while they have that stamp."""
    return Clip(files).digest()


def entry_path(root: str, data_root: str, modality: str, clip: Clip) -> str:
    """Where the frames of a clip lie in a store."""
    place = _inside(root, data_root, modality, clip.files[0])
    if clip.frames is not None:
        place += f"_{clip.first}-{clip.first + clip.frames - 1}"
    return f"{place}.zip"


def _inside(root: str, data_root: str, modality: str, file: str) -> str:
    relative = osp.relpath(file, data_root)
    if relative.split(os.sep)[0] == os.pardir:
        raise FrameStoreError(
            f"{file} does not lie below data_root={data_root!r}, so a frame store has "
            "no place for it: link it there"
        )
    return osp.join(root, modality, relative)
