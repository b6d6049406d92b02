"""Unpacking without trusting the archive: nothing leaves its folder, no half files."""

import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from rich.filesize import decimal

from .common import CHUNK, DamagedArchiveError, DownloadError, Monitor, write_json

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def archive_suffix(name: str) -> str:
    """The ending that makes a file an archive, or ``''``."""
    return next((s for s in ARCHIVES if name.lower().endswith(s)), "")


def safe_name(name: str) -> str:
    """A relative path below its root, with ``/`` and without ``.`` and ``//``.

    Raises:
        DownloadError: If it leads elsewhere, or names nothing.
    """
    parts = name.replace("\\", "/").split("/")
    if (
        name.startswith(("/", "\\"))
        or ".." in parts
        or re.match(r"[A-Za-z]:", name)
        or any(ord(c) < 32 for c in name)
    ):
        raise DownloadError(f"the path {name!r} leads out of its folder: refused")
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise DownloadError(f"the path {name!r} names no file: refused")
    return "/".join(parts)


Member = tuple[str, int, Callable[[], IO[bytes]]]


def _tar_members(path: Path, folder: Path) -> Iterator[Member]:
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(
            f"Python {sys.version.split()[0]} cannot unpack a tar safely; use 3.10.12, "
            "3.11.4, 3.12 or later"
        )

    def content(member: tarfile.TarInfo) -> IO[bytes]:
        try:
            file = tar.extractfile(member)
        except (KeyError, RecursionError):
            file = None
        if file is None:
            raise DownloadError(
                f"{path.name} has the link {member.name!r} to {member.linkname!r}, "
                "which is no file of it: refused"
            )
        return file

    with tarfile.open(path) as tar:
        for member in tar:
            # Refuses devices, and links that lead out. (What is written below are
            # contents only, never links.)
            tarfile.data_filter(member, str(folder))
            if not member.isdir():
                yield member.name, member.size, partial(content, member)


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DownloadError(
                    f"{path.name} has the link {member.filename!r}: refused"
                )
            if member.flag_bits & 1:
                raise DownloadError(f"{path.name} needs a password")
            if not member.is_dir():
                opened = partial(archive.open, member)
                yield member.filename, member.file_size, opened


def _members(path: Path, folder: Path) -> Iterator[Member]:
    suffix = archive_suffix(path.name)
    if suffix == ".zip" or (not suffix and zipfile.is_zipfile(path)):
        return _zip_members(path)
    return _tar_members(path, folder)


@contextlib.contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """What the readers of archives raise, in words."""
    try:
        yield
    except tarfile.FilterError as error:
        raise DownloadError(f"{archive.name}: {error}: refused") from None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        NotImplementedError,
    ) as error:
        with open(archive, "rb") as file:
            start = file.read(16)
        raise DamagedArchiveError(
            f"{archive} is no complete tar or zip archive ({error}); it begins with "
            f"{start!r}"
        ) from None


@dataclass
class Unpacked:
    """What came out of an archive.

    Attributes:
        names: Of the files, below the folder.
        size: Their bytes.
        left: Members that were not wanted.
    """

    names: list[str] = field(default_factory=list)
    size: int = 0
    left: list[str] = field(default_factory=list)


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[str], str | None] = lambda name: name,
    monitor: Monitor | None = None,
) -> Unpacked:
    """Unpacks the files of a tar (compressed or not) or a zip.

    Only plain files are written; a link inside a tar becomes a copy of its file. Each
    file appears by a rename, complete.

    Args:
        archive: The archive.
        folder: Where its files go.
        place: Maps a member's path to its place below the folder; ``None`` leaves the
            member out.
        monitor: For progress and the user's stop.

    Raises:
        DamagedArchiveError: If it is no archive, or ends too early.
        DownloadError: If a member is an absolute path, leads out of the folder, is a
            link out of it, a device or encrypted, two members have one place, or the
            disk is too small.
    """
    monitor, result = monitor or Monitor(), Unpacked()
    sources: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    monitor.begin("unpacking", archive.stat().st_size)
    monitor.check_room(folder)
    with _damage(archive):
        for raw, size, opened in _members(archive, folder):
            name = safe_name(raw)
            target = place(name)
            if target is None:
                result.left.append(name)
                continue
            target = safe_name(target)
            first = sources.setdefault(target, name)
            if first != name:
                raise DownloadError(
                    f"{archive.name} has {first!r} and {name!r} for the same place "
                    f"{target!r}"
                )
            if size > (free := shutil.disk_usage(folder).free):
                raise DownloadError(
                    f"{name!r} of {archive.name} needs {decimal(size)}, but {folder} "
                    f"has {decimal(free)} free. Make room and run it again"
                )
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source:
                result.size += _copy(source, path, monitor)
            result.names.append(target)
    return result


def _copy(source: IO[bytes], path: Path, monitor: Monitor) -> int:
    """Writes a file, complete or not at all; its bytes."""
    temporary, count = path.with_name(f"{path.name}.part"), 0
    try:
        with open(temporary, "wb") as file:
            while piece := source.read(CHUNK):
                file.write(piece)
                count += len(piece)
                monitor.advance(len(piece))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def mark(path: Path, archive: Path, name: str, result: Unpacked) -> None:
    """Notes that an archive was unpacked, when its files are on the disk."""
    os.sync()
    path.parent.mkdir(parents=True, exist_ok=True)
    size = archive.stat().st_size
    write_json(
        path, dict(archive=name, size=size, files=len(result.names), bytes=result.size)
    )
