"""Human-Animal-Cartoon from the Hugging Face Hub, and a count of what is there."""

import fnmatch
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile

from mmaction_mbcd.datasets.epic_splits import SPLITS

from .archives import archive_suffix, mark, safe_name, unpack
from .files import DownloadError, File
from .runs import Options, reason, run

REPO = "hdong51/Human-Animal-Cartoon"
ENDPOINT = "https://huggingface.co"
EXCLUDE = ("*epic*",)
"""The repository may also hold the sounds of EPIC-Kitchens."""

DOMAINS = ("human", "animal", "cartoon")
_SPLIT = re.compile(rf"HAC_(train|test)_only_({'|'.join(DOMAINS)})\.csv")
_KINDS = {r".+_flow_[xy]\.mp4": "flow", r".+\.mp4": "videos", r".+\.wav": "audio"}


def list_dataset(repo: str, revision: str, endpoint: str, token: str) -> list[File]:
    """The files of a dataset repository, with their paths in it.

    ``huggingface_hub`` lists them, with sizes and, for large files, SHA-256s. The Hub
    itself could not be tried.

    Raises:
        DownloadError: If there is no such list, or a path in it leads out of the
            repository.
        ValueError: If the repository's name is malformed.
    """
    files = []
    where = dict(revision=revision, repo_type="dataset")
    try:
        api = HfApi(endpoint, token=token or False)
        for entry in api.list_repo_tree(repo, recursive=True, **where):
            if not isinstance(entry, RepoFile):
                continue
            path = entry.path
            if safe_name(path) != path:
                raise DownloadError(f"the path {path!r} is refused")
            url = hf_hub_url(repo, path, endpoint=endpoint, **where)
            sha256 = entry.lfs.sha256 if entry.lfs else ""
            version = sha256 or entry.blob_id
            known = (entry.size, sha256, version, token)
            files.append(File(path, (url,), Path(path), *known))
    except HFValidationError as error:
        raise ValueError(f"repo must be owner/name: {reason(error)}") from None
    except Exception as error:  # a malformed answer may raise anything
        raise DownloadError(
            f"no list of the files of {repo}, revision {revision}, from {endpoint}: "
            f"{reason(error)}"
        ) from None
    return files


def hac_place(name: str, archive: str = "") -> str | None:
    """Where a file of the repository belongs in :class:`HACDataset`'s layout.

    How the repository packs its files is not known here, so names decide: a clip's
    domain is the last folder (or archive) that names one, its kind is that of its
    file name. Other files stay where they are; what a Mac leaves behind is left out.

    Args:
        name: Path in the repository, or in the archive.
        archive: The archive's path in the repository.
    """
    stem = archive[: len(archive) - len(archive_suffix(archive))]
    *folders, file = [p for p in f"{stem}/{name}".split("/") if p]
    if file.startswith("._") or file == ".DS_Store" or "__MACOSX" in folders:
        return None
    if _SPLIT.fullmatch(file):
        return f"HAC_Splits/{file}"
    domains = []
    for folder in folders:
        words = set(re.split("[^a-z]+", folder.lower())) & set(DOMAINS)
        domains += words if len(words) == 1 else []
    for pattern, kind in _KINDS.items():
        if domains and re.fullmatch(pattern, file):
            return f"{domains[-1]}/{kind}/{file}"
    return str(PurePosixPath(archive).parent / name)


def _unpack(root: Path, name: str, marker: Path, archive: Path) -> str:
    marker.unlink(missing_ok=True)
    names, _ = unpack(archive, root, partial(hac_place, archive=name))
    mark(marker, archive, name, len(names))
    return f"{len(names)} files unpacked"


def _done(file: File, marker: Path) -> str | None:
    try:
        note = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return "" if note["size"] == file.size else None


def hac_files(root: Path, listed: Sequence[File]) -> list[File]:
    """The files of the repository with their places; archives go into the root."""
    files = []
    for file in listed:
        if archive_suffix(file.name):
            path = root / "archives" / file.name
            marker = root / ".unpacked" / f"{quote(file.name, safe='')}.json"
            finish = partial(_unpack, root, file.name, marker, path)
            done = partial(_done, file, marker)
            file = replace(file, path=path, done=done, finish=finish, folder=root)
            files.append(file)
        elif place := hac_place(file.name):
            files.append(replace(file, path=root / safe_name(place)))
    return files


def count_hac(root: Path) -> dict[str, tuple[list[int], list[str]]]:
    """Compares the split files with the files that are there, by domain.

    Returns:
        dict: Per domain, lines of the train and of the test split file, clips that
        they name, and how many of these have video, flow (both files) and sound; and
        the missing files, sound apart, which some clips do not have.

    Raises:
        FileNotFoundError: If a split file is missing.
        ValueError: If one is malformed.
    """
    from mmaction_mbcd.datasets.hac import HACDataset

    pipelines = dict(video=[], flow=[], audio=[])
    dataset = HACDataset(
        str(root), pipelines, sources=DOMAINS, use="train", lazy_init=True
    )
    counts = {}
    for domain in DOMAINS:
        rows = [dataset.rows(domain, split) for split in SPLITS]
        clips = {row["sample_id"]: row["files"] for part in rows for row in part}
        found, missing = dict.fromkeys(pipelines, 0), []
        for files in clips.values():
            for modality, paths in files.items():
                paths = [paths] if isinstance(paths, str) else paths
                gone = [p for p in paths if not Path(p).is_file()]
                found[modality] += not gone
                missing += gone if modality != "audio" else []
        cells = [*map(len, rows), len(clips), *found.values()]
        counts[domain] = cells, sorted(missing)
    return counts


def report_hac(root: Path) -> int:
    """Prints :func:`count_hac`; 0, or 1 if a video or a flow file is missing."""
    try:
        counts = count_hac(root)
    except (FileNotFoundError, ValueError) as error:
        print(
            f"failed: the layout: {error}. The split files are also published with the "
            "code of SimMMDG, in dataset/HAC_Splits",
            file=sys.stderr,
        )
        return 1
    columns = ("train", "test", "clips", "video", "flow", "audio")
    for domain, cells in [("domain", columns)] + [(d, c[0]) for d, c in counts.items()]:
        print(f"{domain:8}" + "".join(f"{cell:>7}" for cell in cells))
    for domain, (_, missing) in counts.items():
        if missing:
            print(
                f"failed: {domain}: {len(missing)} files of the split files' clips are "
                f"missing, the first is {missing[0]}. If they were deleted after "
                f"unpacking, delete {root / '.unpacked'} and run it again",
                file=sys.stderr,
            )
    return int(any(missing for _, missing in counts.values()))


def download_hac(
    root: Path, listed: Sequence[File], options: Options, exclude: Sequence[str]
) -> int:
    """Fetches and unpacks Human-Animal-Cartoon, and checks that it is complete.

    Args:
        root: The data root.
        listed: Of :func:`list_dataset`.
        options: How; with ``dry_run`` it is only printed.
        exclude: Files that are left out, as shell patterns of their lower-case paths.

    Returns:
        int: 0, or 1 if something failed or is missing (it is named).
    """
    wanted = []
    for file in listed:
        name = file.name.lower()
        if file.path.name.startswith("."):
            continue
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in exclude):
            print(f"left out: {file.name}")
            continue
        wanted.append(file)
        if re.search(r"\.(7z|rar|z\d\d|\d{3})$", name):
            print(f"to be unpacked by hand: {file.name}")
    code = run(root, hac_files(root, wanted), options)
    return code if options.dry_run else report_hac(root) or code
