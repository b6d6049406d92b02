"""The frames and flow of EPIC-Kitchens that the MM-SADA splits use.

::

    {rgb,flow}/{train,test}/D1/P08_01/            the split that uses it
    rgb/{train,test}/D1/P08_01.wav                from a zip of wavs
    archives/{train,test}/{rgb,flow}/P08_01.tar   until it is unpacked
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmaction_mbcd.datasets.epic_splits import SPLITS, EpicSegment

from .archives import unpack
from .files import DownloadError, File

EPIC_URL = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
"""Folder of ``{rgb,flow}/{train,test}/{participant}/{video}.tar``.

From the addresses that others' scripts fetch; this server could not be tried. By their
accounts a tar of ``rgb`` has the frames at its top and one of ``flow`` has the folders
``u`` and ``v``; folders around these make no difference."""

EPIC_PARTS = dict(rgb=("",), flow=("u/", "v/"))
"""What is fetched, and the folders of its frames."""


class EpicVideo(NamedTuple):
    """A video (``'P08_01'``), its domain (``'D1'``) and the split with rows of it."""

    domain: str
    split: str
    video: str

    def folder(self, root: Path, part: str) -> Path:
        """Where a part's frames go."""
        return root / part / self.split / self.domain / self.video

    def wav(self, root: Path) -> Path:
        """Where the sound goes."""
        return self.folder(root, "rgb").with_suffix(".wav")


def epic_videos(
    splits: Mapping[str, Sequence[EpicSegment]], domains: Sequence[str]
) -> list[EpicVideo]:
    """The videos that the split files use; by the published ones, each in one split.

    Args:
        splits: Of :func:`.epic_splits.read_splits`.
        domains: Some of ``D1``, ``D2``, ``D3``.
    """
    return sorted(
        {
            EpicVideo(domain, split, segment.video_id)
            for domain in domains
            for split in SPLITS
            for segment in splits[f"{domain}_{split}"]
        }
    )


def epic_place(part: str, name: str) -> str | None:
    """Where a member of a tar belongs in the video's folder; None if nowhere."""
    sides = "|".join(EPIC_PARTS[part])
    match = re.fullmatch(rf"(?:.*/)?((?:{sides})frame_\d{{10}}\.jpg)", name)
    return match[1] if match else None


def _has_frames(part: str, folder: Path) -> bool:
    return all(any(folder.glob(f"{side}frame_*.jpg")) for side in EPIC_PARTS[part])


def _unpack(part: str, folder: Path, archive: Path) -> None:
    # The video's folder appears by a rename, complete.
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    unpack(archive, temporary, partial(epic_place, part))
    if not _has_frames(part, temporary):
        shutil.rmtree(temporary)
        frames = " and ".join(f"{side}frame_*.jpg" for side in EPIC_PARTS[part])
        raise DownloadError(f"{archive} lacks {frames}: delete it, run it again")
    os.replace(temporary, folder)


def epic_files(
    root: Path, videos: Sequence[EpicVideo], parts: Sequence[str], base_url: str
) -> list[File]:
    """One archive per video and part. Frames that are there are kept.

    Whether EPIC-Kitchens keeps a video under ``train`` or ``test`` is its own affair,
    and not MM-SADA's split: ``train`` is asked first, and ``test`` if that says 404.
    """
    files = []
    for part in dict.fromkeys(parts):
        for video in videos:
            kitchen, name = video.video.partition("_")[0], f"{part}/{video.video}.tar"
            urls = tuple(
                f"{base_url.rstrip('/')}/{part}/{official}/{kitchen}/{video.video}.tar"
                for official in ("train", "test")
            )
            folder = video.folder(root, part)
            path = root / "archives" / video.split / name
            done = partial(_has_frames, part, folder)
            finish = partial(_unpack, part, folder, path)
            todo = dict(done=done, finish=finish, folder=folder)
            files.append(File(name, urls, path, **todo))
    return files


def unpack_epic_audio(archive: Path, root: Path, videos: Sequence[EpicVideo]) -> int:
    """Takes the sounds of some videos out of a zip, and says which it lacks.

    Args:
        archive: With a ``P08_01.wav`` per video, in whatever folder.
        root: The data root. A wav that is there is kept.
        videos: Whose sounds are wanted.

    Returns:
        int: 0, or 1 if a video has no sound.
    """
    wavs = [video.wav(root) for video in videos]
    places = {p.name: str(p.relative_to(root)) for p in wavs if not p.exists()}
    names = unpack(archive, root, lambda name: places.get(name.rpartition("/")[2]))
    print(f"{len(names)} wavs from {archive}")
    silent = [path.stem for path in wavs if not path.exists()]
    if silent:
        text = "tools/data/extract_audio.py makes wavs from the videos"
        print(f"failed: no wav of {', '.join(silent)}; {text}", file=sys.stderr)
    return int(bool(silent))
