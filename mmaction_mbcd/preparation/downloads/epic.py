"""The frames and flow of EPIC-Kitchens that the MM-SADA splits use.

::

    {rgb,flow}/{train,test}/D1/P08_01/   {train,test}: the split that uses it
    rgb/{train,test}/D1/P08_01.wav       from a zip of wavs
    archives/{rgb,flow}/P08_01.tar       until it is unpacked

A video that both splits use is stored under ``train``, and ``test`` has a relative
symbolic link to it (in the published splits there is none).
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmaction_mbcd.datasets.epic_splits import PARTICIPANTS, SPLITS, EpicSegment

from .archives import mark, unpack
from .files import DamagedArchiveError, File, check_url
from .runs import Options, run

EPIC_URL = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
"""Folder of ``{rgb,flow}/{train,test}/{participant}/{video}.tar``.

From the addresses that others' scripts fetch; this server could not be tried. By their
accounts a tar of ``rgb`` has the frames at its top and one of ``flow`` has the folders
``u`` and ``v``; :func:`epic_place` relies on no more than the frames' names and these
two folders."""

EPIC_PARTS = ("rgb", "flow")

MARKER = ".unpacked.json"
"""In a video's folder: what was unpacked into it."""


class EpicVideo(NamedTuple):
    """A video (``'P08_01'``), its domain (``'D1'``) and the splits with rows of it."""

    domain: str
    video: str
    splits: tuple[str, ...]

    def paths(self, root: Path, part: str) -> list[Path]:
        """The folder of a part's frames, and links to it for further splits."""
        return [root / part / s / self.domain / self.video for s in self.splits]

    def wavs(self, root: Path) -> list[Path]:
        """The file of the sound, and links to it."""
        return [path.with_suffix(".wav") for path in self.paths(root, "rgb")]


def epic_videos(
    splits: Mapping[str, Sequence[EpicSegment]], domains: Sequence[str]
) -> list[EpicVideo]:
    """The videos that the split files use, by domain and name.

    Args:
        splits: Of :func:`.epic_splits.read_splits`.
        domains: Some of ``D1``, ``D2``, ``D3``.

    Raises:
        ValueError: For a video of another domain's kitchen.
    """
    used: dict[tuple[str, str], list[str]] = {}
    for domain in domains:
        for split in SPLITS:
            for video in {s.video_id for s in splits[f"{domain}_{split}"]}:
                used.setdefault((domain, video), []).append(split)
    for domain, video in used:
        if not video.startswith(f"{PARTICIPANTS[domain]}_"):
            raise ValueError(
                f"{domain} is the kitchen of {PARTICIPANTS[domain]}, but its split "
                f"files name the video {video}"
            )
    return [EpicVideo(*key, tuple(names)) for key, names in sorted(used.items())]


def epic_place(part: str, name: str) -> str | None:
    """Where a member of a video's tar belongs in the video's folder.

    Frames are found wherever they lie in the tar; those of flow below a ``u`` or a
    ``v``. None for everything else.
    """
    *folders, file = name.split("/")
    match = re.fullmatch(r"frame_(\d{1,10})\.jpg", file)
    side = [f for f in folders if f in ("u", "v")]
    if not match or (part == "flow" and not side):
        return None
    frame = f"frame_{int(match[1]):010d}.jpg"
    return frame if part == "rgb" else f"{side[-1]}/{frame}"


def _done(part: str, folder: Path) -> str | None:
    if (folder / MARKER).is_file():
        return ""
    sides = [folder] if part == "rgb" else [folder / "u", folder / "v"]
    if all(any(side.glob("frame_*.jpg")) for side in sides):
        return "kept, though it was not unpacked by this tool"
    return None


def _unpack(part: str, folder: Path, archive: Path) -> str:
    # The video's folder appears by a rename, complete.
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    names, left = unpack(archive, temporary, partial(epic_place, part))
    sides = dict.fromkeys(("u", "v") if part == "flow" else ("",), 0)
    for name in names:
        sides[name.rpartition("/")[0]] += 1
    if not all(sides.values()):
        shutil.rmtree(temporary)
        where = " in u/ and v/" if part == "flow" else ""
        raise DamagedArchiveError(
            f"{archive} has no frame_*.jpg{where}; of its {len(names) + len(left)} "
            f"files the first are {(names + left)[:3]}"
        )
    mark(temporary / MARKER, archive, archive.name, len(names))
    os.replace(temporary, folder)
    counts = "/".join(map(str, sides.values()))
    return "" if len(set(sides.values())) == 1 else f"u and v have {counts} frames"


def epic_files(
    root: Path, videos: Sequence[EpicVideo], parts: Sequence[str], base_url: str
) -> list[File]:
    """One archive per video and part.

    Whether EPIC-Kitchens keeps a video under ``train`` or ``test`` is its own affair,
    and not MM-SADA's split: ``train`` is asked first, and ``test`` if that says 404.

    Raises:
        ValueError: If a part is unknown, or a video's folder holds other things.
    """
    check_url(base_url)
    files = []
    for part in dict.fromkeys(parts):
        if part not in EPIC_PARTS:
            raise ValueError(f"unknown part {part!r}; known are {list(EPIC_PARTS)}")
        for video in videos:
            kitchen, name = video.video.partition("_")[0], f"{video.video}.tar"
            folder = video.paths(root, part)[0]
            done = partial(_done, part, folder)
            if done() is None and folder.exists() and os.listdir(folder):
                raise ValueError(
                    f"{folder} holds files, but no {part} frames: move it away"
                )
            urls = tuple(
                f"{base_url.rstrip('/')}/{part}/{official}/{kitchen}/{name}"
                for official in ("train", "test")
            )
            path = root / "archives" / part / name
            finish = partial(_unpack, part, folder, path)
            file = File(f"{part}/{name}", urls, path, done=done, finish=finish)
            files.append(replace(file, folder=folder))
    return files


def link_splits(paths: Sequence[Path]) -> None:
    """Makes every path a relative link to the first one, where nothing is yet."""
    first, *others = paths
    for path in others:
        if first.exists() and not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(first, path.parent))


def unpack_epic_audio(archive: Path, root: Path, videos: Sequence[EpicVideo]) -> int:
    """Takes the sounds of some videos out of a zip, and says which it lacks.

    Args:
        archive: With a ``P08_01.wav`` per video, in whatever folder.
        root: The data root. A wav that is there is kept.
        videos: Whose sounds are wanted.

    Returns:
        int: 0, or 1 if a video has no sound.
    """
    wavs = {video.wavs(root)[0].name: video.wavs(root) for video in videos}
    places = {
        name: str(paths[0].relative_to(root))
        for name, paths in wavs.items()
        if not paths[0].exists()
    }
    names, _ = unpack(archive, root, lambda name: places.get(name.rpartition("/")[2]))
    print(f"{len(names)} wavs from {archive}")
    for paths in wavs.values():
        link_splits(paths)
    silent = [paths[0].stem for paths in wavs.values() if not paths[0].exists()]
    if silent:
        print(
            f"failed: {archive} lacks the wav of {', '.join(silent)}; "
            "tools/data/extract_audio.py makes them from the videos",
            file=sys.stderr,
        )
    return int(bool(silent))


def download_epic(
    root: Path,
    videos: Sequence[EpicVideo],
    parts: Sequence[str],
    base_url: str,
    options: Options,
) -> int:
    """Fetches and unpacks the frames of videos, and links what two splits share.

    Args:
        root: The data root.
        videos: Of :func:`epic_videos`.
        parts: Some of ``rgb``, ``flow``.
        base_url: See :data:`EPIC_URL`.
        options: How; with ``dry_run`` it is only printed.

    Returns:
        int: 0, or 1 if something failed (it is named).
    """
    code = run(root, epic_files(root, videos, parts, base_url), options)
    for video in videos if not options.dry_run else []:
        for part in parts:
            link_splits(video.paths(root, part))
    return code
