"""Unpacking without trusting the archive: nothing leaves its folder, no half files.

``extractall`` makes links, leaves half files under their names and fills the disk.
"""

import lzma
import os
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

from .files import DownloadError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)

Member = tuple[str, int, Callable[[], IO[bytes]]]


def safe_name(name: str) -> str:
    """A relative path below its root, with ``/`` and without ``.`` and ``//``.

    Raises:
        DownloadError: If it leads elsewhere, or names nothing.
    """
    name = name.replace("\\", "/")
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if not parts or name[0] == "/" or ".." in parts or min(name) < " ":
        raise DownloadError(f"the path {name!r} leads out of its folder: refused")
    return "/".join(parts)


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg():  # its contents, without owner and mode
                yield member.name, member.size, partial(tar.extractfile, member)
            elif not member.isdir():
                raise DownloadError(f"the link or device {member.name!r}: refused")


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):  # of Unix
                raise DownloadError(f"the link {member.filename!r}: refused")
            if not member.is_dir():
                opened = partial(archive.open, member)
                yield member.filename, member.file_size, opened


def unpack(
    archive: Path, folder: Path, place: Callable[[str], str | None]
) -> list[str]:
    """Unpacks the plain files of a tar (compressed or not) or a zip.

    A file that is there is replaced, by a rename: it is complete or as it was. When it
    returns, the files are on the disk.

    Args:
        archive: The archive.
        folder: Where its files go.
        place: Maps a member's path to its place below the folder; None leaves the
            member out.

    Returns:
        list: The places of the files.

    Raises:
        DownloadError: If it is not an archive or ends too early, a member is an
            absolute path, leads out of the folder, is a link or a device, two members
            have one place, or the disk is too small.
    """
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    sources: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for raw, size, opened in members(archive):
            name = safe_name(raw)
            if (target := place(name)) is None:
                continue
            if (first := sources.setdefault(target, name)) != name:
                raise DownloadError(f"{first!r} and {name!r} have one place {target!r}")
            # No more than the declared size is read.
            if size > (free := shutil.disk_usage(folder).free):
                room = f"needs {decimal(size)}, but {decimal(free)} are free"
                raise DownloadError(f"{name!r} {room}")
            _write(opened, folder / target)
    except DownloadError as error:
        raise DownloadError(f"{archive}: {error}") from None
    except _DAMAGE as error:
        raise DownloadError(
            f"{archive} is not a complete archive ({error}): delete it, run it again"
        ) from None
    os.sync()  # before anyone notes that they are there
    return list(sources)


def _write(opened: Callable[[], IO[bytes]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with opened() as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 18)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
