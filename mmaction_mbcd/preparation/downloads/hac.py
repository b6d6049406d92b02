"""Human-Animal-Cartoon from the Hugging Face Hub."""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import RepoFile

from .archives import ARCHIVES, safe_name, unpack
from .files import DownloadError, File
from .runs import reason, run

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
    """
    files = []
    where = dict(revision=revision, repo_type="dataset")
    try:
        api = HfApi(endpoint, token=token or False)
        for entry in api.list_repo_tree(repo, recursive=True, **where):
            if not isinstance(entry, RepoFile):
                continue
            path = safe_name(entry.path)
            url = hf_hub_url(repo, path, endpoint=endpoint, **where)
            sha256 = entry.lfs.sha256 if entry.lfs else ""
            known = (entry.size, sha256, sha256 or entry.blob_id, token)
            files.append(File(path, (url,), Path(path), *known))
    except Exception as error:  # a malformed answer may raise anything
        raise DownloadError(
            f"no list of the files of {repo}, revision {revision}, from {endpoint}: "
            f"{reason(error)}"
        ) from None
    return files


def hac_place(name: str, archive: str = "") -> str:
    """Where a file of the repository belongs in :class:`HACDataset`'s layout.

    How the repository packs its files is not known here, so names decide: a clip's
    domain is the last folder (or archive) that names one, its kind is that of its
    file name. Other files stay where they are.

    Args:
        name: Path in the repository, or in the archive.
        archive: The archive's path in the repository.
    """
    *folders, file = f"{archive}/{name}".split("/")
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


def _unpack(root: Path, file: File, marker: Path, archive: Path) -> str:
    marker.unlink(missing_ok=True)  # of another version
    names = unpack(archive, root, partial(hac_place, archive=file.name))
    marker.write_text(file.version, encoding="utf-8")
    return f"{len(names)} files unpacked"


def _is_unpacked(file: File, marker: Path) -> bool:
    return marker.is_file() and marker.read_text(encoding="utf-8") == file.version


def hac_files(root: Path, listed: Sequence[File], exclude: Sequence[str]) -> list[File]:
    """The files of the repository with their places; archives go into the root."""
    files = []
    for file in listed:
        name = file.name.lower()
        if any(fnmatchcase(name, pattern.lower()) for pattern in exclude):
            continue
        path = root / hac_place(file.name)
        if name.endswith(ARCHIVES):
            path = root / "archives" / file.name
            marker = path.with_name(f"{path.name}.unpacked")
            finish = partial(_unpack, root, file, marker, path)
            done = partial(_is_unpacked, file, marker)
            file = replace(file, done=done, finish=finish, folder=root)
        files.append(replace(file, path=path))
    return files


def download_hac(
    root: Path, listed: Sequence[File], options: Namespace, exclude: Sequence[str]
) -> int:
    """Fetches and unpacks Human-Animal-Cartoon, and says how to check it.

    Args:
        root: The data root.
        listed: Of :func:`list_dataset`.
        options: Of :func:`.add_options`; with ``dry_run`` it is only printed.
        exclude: Files that are left out, as shell patterns of their lower-case paths.

    Returns:
        int: 0, or 1 if something failed or no split files came (it is named).
    """
    code = run(root, hac_files(root, listed, exclude), options)
    if options.dry_run:
        return code
    if not (root / "HAC_Splits").is_dir():
        text = "is missing; the code of SimMMDG has it, in dataset/HAC_Splits"
        print(f"failed: {root}/HAC_Splits {text}", file=sys.stderr)
        code = 1
    check = "python tools/data/check.py configs/mbcd/hac/mbcd.py --quick"
    print(f"to check it: {check} --data-root {root}")
    return code
