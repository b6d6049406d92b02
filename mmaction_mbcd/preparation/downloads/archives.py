"""Unpacking without trusting the archive: nothing leaves its folder, no half files."""

import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from .files import DamagedArchiveError, DownloadError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    NotImplementedError,
    KeyError,  # a link in a tar to nothing
    RecursionError,  # or to itself
)

Member = tuple[str, int, Callable[[], IO[bytes]]]


def archive_suffix(name: str) -> str:
    """The ending that makes a file an archive, or ``''``."""
    return next((s for s in ARCHIVES if name.lower().endswith(s)), "")


def safe_name(name: str) -> str:
    """A relative path below its root, with ``/`` and without ``.`` and ``//``.

    Raises:
        DownloadError: If it leads elsewhere, or names nothing.
    """
    parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".")]
    # Nothing, a drive, an absolute path, a way up, a control character.
    if (
        not parts
        or re.match(r"[A-Za-z]:|[/\\]", name)
        or ".." in parts
        or min(name) < " "
    ):
        raise DownloadError(f"the path {name!r} leads out of its folder: refused")
    return "/".join(parts)


def _tar_members(path: Path, folder: Path) -> Iterator[Member]:
    with tarfile.open(path) as tar:
        for member in tar:
            # Refuses devices, and links that lead out. What is written are contents
            # only: a link becomes a copy of its file.
            tarfile.data_filter(member, str(folder))
            if not member.isdir():
                yield member.name, member.size, partial(tar.extractfile, member)


def _zip_members(path: Path, folder: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DownloadError(f"the link {member.filename!r}: refused")
            if member.flag_bits & 1:
                raise DownloadError("it needs a password")
            if not member.is_dir():
                opened = partial(archive.open, member)
                yield member.filename, member.file_size, opened


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[str], str | None] = lambda name: name,
) -> tuple[list[str], list[str]]:
    """Unpacks the plain files of a tar (compressed or not) or a zip.

    A file that is there is replaced, by a rename: it is complete or as it was.

    Args:
        archive: The archive.
        folder: Where its files go.
        place: Maps a member's path to its place below the folder; None leaves the
            member out.

    Returns:
        tuple: The places of the files, and the paths that were left out.

    Raises:
        DamagedArchiveError: If it is not an archive, or ends too early.
        DownloadError: If a member is an absolute path, leads out of the folder, is a
            link out of it, a device or encrypted, two members have one place, or the
            disk is too small.
    """
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    sources, left = {}, []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for raw, size, opened in members(archive, folder):
            name = safe_name(raw)
            if (target := place(name)) is None:
                left.append(name)
                continue
            if (first := sources.setdefault(safe_name(target), name)) != name:
                raise DownloadError(f"{first!r} and {name!r} have one place {target!r}")
            if size > (free := shutil.disk_usage(folder).free):
                text = f"{name!r} needs {decimal(size)}, but {decimal(free)} are free"
                raise DownloadError(f"{text}. Make room and run it again")
            _write(opened, folder / safe_name(target))
    except tarfile.FilterError as error:
        raise DownloadError(f"{archive}: {error}: refused") from None
    except DownloadError as error:
        raise DownloadError(f"{archive}: {error}") from None
    except _DAMAGE as error:
        with open(archive, "rb") as file:
            start = file.read(16)
        raise DamagedArchiveError(
            f"{archive} is not a complete archive ({error}); it begins with {start!r}"
        ) from None
    return list(sources), left


def _write(opened: Callable[[], IO[bytes]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with opened() as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 18)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def mark(path: Path, archive: Path, name: str, count: int) -> None:
    """Notes that an archive's files were unpacked, when they are on the disk."""
    os.sync()
    path.parent.mkdir(parents=True, exist_ok=True)
    note = dict(archive=name, size=archive.stat().st_size, files=count)
    path.write_text(json.dumps(note), encoding="utf-8")
