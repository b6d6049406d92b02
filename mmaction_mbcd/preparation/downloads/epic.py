"""The frames and flow of EPIC-Kitchens that the MM-SADA splits use."""

import os
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmaction_mbcd.datasets.epic_splits import (
    PARTICIPANTS,
    SPLITS,
    EpicSegment,
)

from ..epic_splits import read_splits
from .archives import mark, unpack
from .common import DamagedArchiveError, Monitor, Options
from .files import Download
from .runs import Job, dry_run, run_and_report

EPIC_URL = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
"""Folder of ``{rgb,flow}/{train,test}/{participant}/{video}.tar``.

From the addresses that others' scripts fetch; this server could not be tried. By their
accounts a tar of ``rgb`` has the frames at its top and one of ``flow`` has the folders
``u`` and ``v``; :func:`epic_place` relies on no more than the frames' names and these
two folders."""

EPIC_PARTS = ("rgb", "flow")

MARKER = ".unpacked.json"
"""In a video's folder: what was unpacked into it."""


@dataclass(frozen=True)
class EpicVideo:
    """A video, and which splits have rows of it.

    Attributes:
        domain: ``'D1'`` ...
        video: ``'P08_01'`` ...
        splits: ``('train',)``, ``('test',)`` or both. The first one's folder holds
            the files; the other's has a link to it.
    """

    domain: str
    video: str
    splits: tuple[str, ...]

    def path(self, root: Path, part: str, split: str | None = None) -> Path:
        """The folder of a part's frames."""
        return root / part / (split or self.splits[0]) / self.domain / self.video

    def wav(self, root: Path, split: str | None = None) -> Path:
        """The file of the sound."""
        folder = self.path(root, "rgb", split)
        return folder.with_name(f"{self.video}.wav")


def epic_videos(
    splits: Mapping[str, Sequence[EpicSegment]],
    domains: Sequence[str] = tuple(PARTICIPANTS),
) -> list[EpicVideo]:
    """The videos that the split files use.

    Args:
        splits: Of :func:`.epic_splits.read_splits`.
        domains: Some of ``D1``, ``D2``, ``D3``.

    Raises:
        ValueError: For another domain, or a video of another domain's kitchen.
    """
    videos = []
    for domain in dict.fromkeys(domains):
        if domain not in PARTICIPANTS:
            raise ValueError(
                f"unknown domain {domain!r}; known are {', '.join(PARTICIPANTS)}"
            )
        used: dict[str, list[str]] = {}
        for split in SPLITS:
            for video in {s.video_id for s in splits[f"{domain}_{split}"]}:
                used.setdefault(video, []).append(split)
        kitchen = PARTICIPANTS[domain]
        for video, names in sorted(used.items()):
            if not video.startswith(f"{kitchen}_"):
                raise ValueError(
                    f"{domain} is the kitchen of {kitchen}, but its split files name "
                    f"the video {video}"
                )
            videos.append(EpicVideo(domain, video, tuple(names)))
    return videos


def epic_place(part: str, name: str) -> str | None:
    """Where a member of a video's tar belongs in the video's folder.

    Frames are found wherever they lie in the tar; those of flow below a ``u`` or a
    ``v``. ``None`` for everything else.
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
    parts = [folder] if part == "rgb" else [folder / "u", folder / "v"]
    if all(any(p.glob("frame_*.jpg")) for p in parts):
        return "kept, though it was not unpacked by this tool"
    return None


def _unpack(part: str, folder: Path, archive: Path, monitor: Monitor) -> str:
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    result = unpack(archive, temporary, partial(epic_place, part), monitor)
    sides = dict.fromkeys(("u", "v") if part == "flow" else ("",), 0)
    for name in result.names:
        sides[name.rpartition("/")[0]] += 1
    if not all(sides.values()):
        shutil.rmtree(temporary)
        where = " in u/ and v/" if part == "flow" else ""
        raise DamagedArchiveError(
            f"{archive} has no frame_*.jpg{where}; of its "
            f"{len(result.names) + len(result.left)} files the first are "
            f"{(result.names + result.left)[:3]}"
        )
    mark(temporary / MARKER, archive, archive.name, result)
    os.replace(temporary, folder)
    counts = "/".join(map(str, sides.values()))
    return "" if len(set(sides.values())) == 1 else f"u and v have {counts} frames"


def epic_jobs(
    root: Path,
    videos: Sequence[EpicVideo],
    parts: Sequence[str] = EPIC_PARTS,
    base_url: str = EPIC_URL,
) -> list[Job]:
    """One job per video and part.

    Whether EPIC-Kitchens keeps a video under ``train`` or ``test`` is its own affair,
    and not MM-SADA's split: ``train`` is asked first, and ``test`` if that says 404.

    Raises:
        ValueError: If a part is unknown, or a video's folder holds other things.
    """
    jobs = []
    for part in dict.fromkeys(parts):
        if part not in EPIC_PARTS:
            raise ValueError(f"unknown part {part!r}; known are {list(EPIC_PARTS)}")
        for video in videos:
            kitchen, file = video.video.partition("_")[0], f"{video.video}.tar"
            folder = video.path(root, part)
            archive = root / "archives" / part / file
            done = partial(_done, part, folder)
            if done() is None and folder.exists() and os.listdir(folder):
                raise ValueError(
                    f"{folder} holds files, but no {part} frames: move it away"
                )
            urls = [
                f"{base_url.rstrip('/')}/{part}/{official}/{kitchen}/{file}"
                for official in ("train", "test")
            ]
            download = Download(tuple(urls), archive, f"{part}/{file}")
            jobs.append(
                Job(download, partial(_unpack, part, folder, archive), done, folder)
            )
    return jobs


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

    Raises:
        DownloadError: As in :func:`.archives.unpack`.
    """
    places = {
        f"{v.video}.wav": str(v.wav(root).relative_to(root))
        for v in videos
        if not v.wav(root).exists()
    }
    result = unpack(archive, root, lambda name: places.get(name.rpartition("/")[2]))
    print(f"{len(result.names)} wavs from {archive}")
    for video in videos:
        link_splits([video.wav(root, split) for split in video.splits])
    silent = [v.video for v in videos if not v.wav(root).exists()]
    if silent:
        print(
            f"failed: {archive} lacks the wav of {', '.join(silent)}; "
            "tools/data/extract_audio.py makes them from the videos",
            file=sys.stderr,
        )
    return int(bool(silent))


def download_epic(
    root: Path,
    splits: Path,
    options: Options,
    domains: Sequence[str] = tuple(PARTICIPANTS),
    parts: Sequence[str] = EPIC_PARTS,
    base_url: str = EPIC_URL,
    audio_zip: Path | None = None,
) -> int:
    """Fetches the frames of EPIC-Kitchens that the MM-SADA splits use.

    ::

        {rgb,flow}/{train,test}/D1/P08_01/   {train,test}: the split that uses it
        rgb/{train,test}/D1/P08_01.wav       from ``audio_zip``
        archives/{rgb,flow}/P08_01.tar       until it is unpacked

    A video that both splits use is stored under ``train``, and ``test`` has a relative
    symbolic link to it (in the published splits there is none).

    Args:
        root: The data root.
        splits: Folder of the six split files, CSV or pickles.
        options: How; with ``dry_run`` it is only printed.
        domains: Some of ``D1``, ``D2``, ``D3``.
        parts: Some of ``rgb``, ``flow``.
        base_url: See :data:`EPIC_URL`.
        audio_zip: A zip of wavs that the user has fetched.

    Returns:
        int: 0, or 1 if something failed (it is named).

    Raises:
        ValueError, FileNotFoundError, pickle.UnpicklingError: For what the caller
            gave, see :func:`.epic_splits.read_splits`.
    """
    suffix = ".csv" if any(splits.glob("D?_*.csv")) else ".pkl"
    videos = epic_videos(read_splits(str(splits), suffix), domains)
    if audio_zip and not zipfile.is_zipfile(audio_zip):
        raise ValueError(f"{audio_zip} is no zip file")
    jobs = epic_jobs(root, videos, parts, base_url)
    if options.dry_run:
        return dry_run(jobs, options)
    code, outcomes = run_and_report(jobs, options) if jobs else (0, [])
    if any(outcome.state == "stopped" for outcome in outcomes):
        return code
    for video in videos:
        for part in parts:
            link_splits([video.path(root, part, split) for split in video.splits])
    if audio_zip:
        code |= unpack_epic_audio(audio_zip, root, videos)
    return code
