"""Human-Animal-Cartoon from the Hugging Face Hub, and a count of what is there."""

import fnmatch
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urljoin

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from mmaction_mbcd.datasets.epic_splits import SPLITS

from .archives import archive_suffix, mark, safe_name, unpack
from .common import DownloadError, Monitor, Options, read_json
from .files import Download
from .http import (
    MissingError,
    TransientError,
    check_url,
    open_url,
    origin,
    persist,
    pieces,
)
from .runs import Job, dry_run, run_and_report

EXCLUDE = ("*epic*",)
"""The repository may also hold the sounds of EPIC-Kitchens."""

MAX_LISTING = 64 << 20


@dataclass(frozen=True)
class HubDataset:
    """A dataset repository on the Hugging Face Hub or a mirror of it.

    Attributes:
        repo: ``owner/name``.
        revision: A branch, tag or commit.
        endpoint: The server.
        token: Sent to the endpoint's host only.

    Raises:
        ValueError: If one is malformed.
    """

    repo: str = "hdong51/Human-Animal-Cartoon"
    revision: str = "main"
    endpoint: str = "https://huggingface.co"
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.repo):
            raise ValueError(f"repo must be owner/name, got {self.repo!r}")
        check_url(self.endpoint)
        if self.token and not re.fullmatch(r"[!-~]+", self.token):
            raise ValueError("the token (HF_TOKEN) holds characters that no token has")

    def listing(self) -> str:
        """The URL of the list of files."""
        return self._url("api/datasets", "tree") + "?recursive=true"

    def file(self, path: str) -> str:
        """The URL of a file."""
        return f"{self._url('datasets', 'resolve')}/{quote(path)}"

    def _url(self, folder: str, view: str) -> str:
        revision = quote(self.revision, safe="")
        return f"{self.endpoint.rstrip('/')}/{folder}/{self.repo}/{view}/{revision}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset repository.

    Attributes:
        path: In the repository.
        size: In bytes.
        sha256: Of the content, if the listing says it.
    """

    path: str
    size: int | None
    sha256: str | None


def _page(
    url: str, token: str | None, options: Options, monitor: Monitor
) -> tuple[object, str]:
    """One page of JSON, and its ``Link`` header."""

    def attempt() -> tuple[object, str]:
        with open_url(url, options, token=token) as response:
            body = bytearray()
            for piece in pieces(response, url, options):
                body += piece
                if len(body) > MAX_LISTING:
                    raise DownloadError(f"{url}: more than {decimal(MAX_LISTING)}")
            try:
                # A list that was cut off is no JSON.
                return json.loads(body), response.headers.get("Link") or ""
            except ValueError:
                raise TransientError(
                    f"{url} is no list of files; it begins with {bytes(body[:40])!r}"
                ) from None

    return persist(attempt, options, monitor)


def list_dataset(source: HubDataset, options: Options) -> list[RemoteFile]:
    """The files of a dataset repository.

    ``{endpoint}/api/datasets/{repo}/tree/{revision}?recursive=true`` answers with a
    list of ``{type, path, size, lfs: {oid, size}}``, where ``oid`` is a SHA-256; a
    header ``Link: <...>; rel="next"`` leads to the rest. That is the Hub's documented
    interface; it could not be tried.

    Raises:
        DownloadError: If there is no such list, or a path in it leads out of the
            repository.
    """
    url, monitor = source.listing(), Monitor()
    files, seen = [], set()
    while url:
        seen.add(url)
        token = source.token if origin(url) == origin(source.endpoint) else None
        try:
            entries, link = _page(url, token, options, monitor)
        except MissingError as error:
            raise DownloadError(
                f"{error}. Is there a dataset {source.repo} with the revision "
                f"{source.revision}?"
            ) from None
        if not isinstance(entries, list):
            raise DownloadError(f"{url} is no list of files, but {str(entries)[:60]}")
        files += [_remote_file(url, entry) for entry in entries if _is_file(entry)]
        url = _next(url, link)
        if url in seen:
            raise DownloadError(f"{url} leads back to itself")
    return files


def _is_file(entry: object) -> bool:
    return not isinstance(entry, dict) or entry.get("type") == "file"


def _remote_file(url: str, entry: object) -> RemoteFile:
    try:
        lfs = entry.get("lfs") or {}
        path, size = safe_name(entry["path"]), lfs.get("size", entry.get("size"))
        sha256 = lfs.get("oid")
        good = size is None or (type(size) is int and size >= 0)
        good &= sha256 is None or bool(re.fullmatch("[0-9a-f]{64}", sha256))
        if path != entry["path"] or not good:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DownloadError(f"{url} has an entry that is no file: {entry!r}") from None
    return RemoteFile(path, size, sha256)


def _next(url: str, link: str) -> str | None:
    """The next page, from a ``Link`` header."""
    for target, parameters in re.findall(r"<([^>]*)>([^<]*)", link):
        if re.search(r"""rel\s*=\s*["']?next\b""", parameters):
            return check_url(urljoin(url, target))
    return None


_DOMAINS = ("human", "animal", "cartoon")
_SPLIT = re.compile(rf"HAC_(train|test)_only_({'|'.join(_DOMAINS)})\.csv")
_KINDS = (
    (re.compile(r".+_flow_[xy]\.mp4"), "flow"),
    (re.compile(r".+\.mp4"), "videos"),
    (re.compile(r".+\.wav"), "audio"),
)


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
        words = set(re.split("[^a-z]+", folder.lower())) & set(_DOMAINS)
        domains += words if len(words) == 1 else []
    for pattern, kind in _KINDS:
        if domains and pattern.fullmatch(file):
            return f"{domains[-1]}/{kind}/{file}"
    return str(PurePosixPath(archive).parent / name)


def _unpack(
    root: Path, file: RemoteFile, marker: Path, archive: Path, monitor: Monitor
) -> str:
    marker.unlink(missing_ok=True)
    result = unpack(archive, root, partial(hac_place, archive=file.path), monitor)
    mark(marker, archive, file.path, result)
    return f"{len(result.names)} files unpacked"


def _done(file: RemoteFile, marker: Path) -> str | None:
    note = read_json(marker)
    same = note.get("archive") == file.path
    return "" if same and file.size in (None, note.get("size")) else None


def hac_jobs(root: Path, files: Sequence[RemoteFile], source: HubDataset) -> list[Job]:
    """One job per file of the repository; archives are unpacked into the root."""
    jobs = []
    for file in files:
        packed = bool(archive_suffix(file.path))
        place = f"archives/{file.path}" if packed else hac_place(file.path)
        if place is None:
            continue
        path = root / safe_name(place)
        sha256 = f"sha256:{file.sha256}" if file.sha256 else None
        urls = (source.file(file.path),)
        job = Job(Download(urls, path, file.path, file.size, sha256, source.token))
        if packed:
            marker = root / ".unpacked" / f"{quote(file.path, safe='')}.json"
            finish = partial(_unpack, root, file, marker, path)
            job = Job(job.download, finish, partial(_done, file, marker), root)
        jobs.append(job)
    return jobs


@dataclass(frozen=True)
class HacCount:
    """What is there of a domain.

    Attributes:
        domain: ``'human'`` ...
        rows: Lines of the train and of the test split file.
        clips: Different clips that they name.
        found: Clips that have ``video``, ``flow`` (both files) and ``audio``.
        missing: Files that do not exist; sound is not among them.
    """

    domain: str
    rows: tuple[int, int]
    clips: int
    found: dict[str, int]
    missing: tuple[str, ...]


def verify_hac(root: Path) -> list[HacCount]:
    """Compares the split files with the files that are there.

    Raises:
        FileNotFoundError: If a split file is missing.
        ValueError: If one is malformed.
    """
    from mmaction_mbcd.datasets.hac import HACDataset

    pipelines = dict(video=[], flow=[], audio=[])
    dataset = HACDataset(
        str(root), pipelines, sources=_DOMAINS, use="train", lazy_init=True
    )
    counts = []
    for domain in _DOMAINS:
        rows = [dataset.rows(domain, split) for split in SPLITS]
        clips = {row["sample_id"]: row["files"] for part in rows for row in part}
        found, missing = dict.fromkeys(pipelines, 0), []
        for files in clips.values():
            for modality, paths in files.items():
                paths = [paths] if isinstance(paths, str) else paths
                gone = [p for p in paths if not Path(p).is_file()]
                found[modality] += not gone
                # Some clips have no sound.
                missing += gone if modality != "audio" else []
        counts.append(
            HacCount(
                domain, tuple(map(len, rows)), len(clips), found, tuple(sorted(missing))
            )
        )
    return counts


def report_hac(root: Path) -> int:
    """Prints :func:`verify_hac`; 0, or 1 if a video or a flow file is missing."""
    try:
        counts = verify_hac(root)
    except (FileNotFoundError, ValueError) as error:
        print(
            f"failed: the layout: {error}. The split files are also published with the "
            "code of SimMMDG, in dataset/HAC_Splits",
            file=sys.stderr,
        )
        return 1
    table = Table(title=str(root), title_justify="left", box=box.SIMPLE)
    table.add_column("domain")
    for column in ("train", "test", "clips", "video", "flow", "audio"):
        table.add_column(column, justify="right")
    for count in counts:
        cells = (*count.rows, count.clips, *count.found.values())
        table.add_row(count.domain, *map(str, cells))
    Console().print(table)
    for count in counts:
        if count.missing:
            print(
                f"failed: {count.domain}: {len(count.missing)} files of the split "
                f"files' clips are missing, the first is {count.missing[0]}. If they "
                f"were deleted after unpacking, delete {root / '.unpacked'} and run "
                "it again",
                file=sys.stderr,
            )
    return int(any(count.missing for count in counts))


def download_hac(
    root: Path, source: HubDataset, options: Options, exclude: Sequence[str] = EXCLUDE
) -> int:
    """Fetches and unpacks Human-Animal-Cartoon, and checks that it is complete.

    Args:
        root: The data root.
        source: Where it is.
        options: How; with ``dry_run`` the files are listed and printed.
        exclude: Files that are left out, as shell patterns of their paths, in lower
            case.

    Returns:
        int: 0, or 1 if something failed or is missing (it is named).

    Raises:
        DownloadError: If there is no list of files.
    """
    wanted = []
    for file in list_dataset(source, options):
        name = file.path.lower()
        if file.path.rpartition("/")[2].startswith("."):
            continue
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in exclude):
            print(f"left out: {file.path}")
            continue
        wanted.append(file)
        if re.search(r"\.(7z|rar|z\d\d|\d{3})$", name):
            print(f"to be unpacked by hand: {file.path}")
    jobs = hac_jobs(root, wanted, source)
    if options.dry_run:
        return dry_run(jobs, options)
    code, outcomes = run_and_report(jobs, options)
    if any(outcome.state == "stopped" for outcome in outcomes):
        return code
    return report_hac(root) or code
