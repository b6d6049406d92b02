"""One file: the rest of it after an interruption, and whether it is the right one.

A file is written as ``X.part``; ``X.part.json`` beside it notes its URL, its size and
what the server calls this version of it (``ETag``, ``Last-Modified``). The next try
asks for the rest with ``Range`` and, so that two versions of a file are never stitched
together, with ``If-Range``. ``X`` itself appears by a rename, when its size and its
published checksum are right.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from .common import CHUNK, DownloadError, Monitor, Options, read_json, write_json
from .http import (
    MissingError,
    RangeError,
    TransientError,
    check_url,
    number,
    open_url,
    persist,
    pieces,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Download:
    """One file.

    Attributes:
        urls: Where it may be; the next one is tried when the server says 404.
        path: Where it goes.
        name: What messages call it.
        size: In bytes, if published.
        checksum: Published, ``'sha256:<hex>'`` or ``'md5:<hex>'``; a prefix will do.
        token: Sent as ``Authorization: Bearer``, to the hosts of ``urls`` only and
            never to one that they redirect to.

    Raises:
        ValueError: If a URL is none of HTTP(S), or a checksum is of another kind.
    """

    urls: tuple[str, ...]
    path: Path
    name: str
    size: int | None = None
    checksum: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for url in self.urls:
            check_url(url)
        if self.checksum:
            kind, _, value = self.checksum.partition(":")
            if kind not in ("sha256", "md5") or not re.fullmatch("[0-9a-f]+", value):
                raise ValueError(
                    f"checksum of {self.name} must be sha256:<hex> or md5:<hex>, got "
                    f"{self.checksum!r}"
                )


def _from_any(
    download: Download, attempt: Callable[[str], T], options: Options, monitor: Monitor
) -> T:
    """What ``attempt`` returns for the first URL that the server has.

    Raises:
        DownloadError: If no URL has the file, or the server does not answer.
    """
    missing = []
    for url in download.urls:
        try:
            return persist(partial(attempt, url), options, monitor)
        except MissingError as error:
            missing.append(str(error))
    raise DownloadError("; ".join(missing))


def remote_size(download: Download, options: Options) -> int | None:
    """Asks for a file's size in bytes with HEAD; ``None`` if the server is silent.

    Raises:
        DownloadError: If the file is not there, or the server is not.
    """
    if download.size is not None:
        return download.size

    def head(url: str) -> int | None:
        with open_url(url, options, token=download.token, method="HEAD") as response:
            return number(response.headers, "Content-Length")

    return _from_any(download, head, options, Monitor())


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps other processes from the same file.

    Raises:
        DownloadError: If one is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DownloadError(
                f"another process is fetching {path}; wait for it or stop it"
            ) from None
        except OSError:
            pass  # a file system without locks
        # Its last owner may have removed the file that was opened here.
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def digest(path: Path, kind: str = "sha256", monitor: Monitor | None = None) -> str:
    """The checksum of a file, in hexadecimal digits."""
    monitor = monitor or Monitor()
    monitor.begin("checking", path.stat().st_size)
    value = hashlib.new(kind)
    with open(path, "rb") as file:
        while piece := file.read(4 * CHUNK):
            value.update(piece)
            monitor.advance(len(piece))
    return value.hexdigest()


def _fault(download: Download, path: Path, monitor: Monitor) -> str | None:
    """What is wrong with a complete file."""
    size = path.stat().st_size
    if download.size is not None and size != download.size:
        return f"it has {size} bytes, but {download.size} are published"
    if download.checksum:
        kind, _, published = download.checksum.partition(":")
        actual = digest(path, kind, monitor)
        if not actual.startswith(published):
            return f"its {kind} is {actual}, but {published} is published"
    return None


class _Transfer:
    """A file on its way: the part, the note beside it and what the server sends."""

    def __init__(self, download: Download, options: Options, monitor: Monitor) -> None:
        self.download, self.options, self.monitor = download, options, monitor
        self.path = download.path.with_name(f"{download.path.name}.part")
        self.note_path = self.path.with_name(f"{self.path.name}.json")
        self.note = read_json(self.note_path)
        # A server that answered a range wrongly is not asked for one again.
        self.whole = False

    def validator(self) -> str | None:
        """What ``If-Range`` can name: a strong ETag, or a date."""
        etag = self.note.get("etag")
        if isinstance(etag, str) and etag.startswith('"'):
            return etag
        return self.note.get("last_modified")

    def resume_point(self, url: str) -> int:
        """How many bytes of the part are good."""
        if self.whole or self.note.get("url") != url or not self.validator():
            return 0
        try:
            have = self.path.stat().st_size
        except FileNotFoundError:
            return 0
        size = self.note.get("size")
        return have if size is None or have <= size else 0

    def attempt(self, url: str) -> None:
        """One request."""
        start = self.resume_point(url)
        if start and start == self.note.get("size"):
            return  # killed before the rename
        headers = {}
        if start:
            headers = {"Range": f"bytes={start}-", "If-Range": self.validator()}
        self.monitor.begin("fetching", self.note.get("size") if start else None, start)
        try:
            with open_url(url, self.options, headers, self.download.token) as response:
                start = self.agree(response, url, start)
                self.write(response, url, start)
        except RangeError:
            self.whole = True
            raise

    def agree(self, response: http.client.HTTPResponse, url: str, start: int) -> int:
        """Where the body starts in the file, whose size is then noted."""
        headers = response.headers
        if response.status == 206 and start:
            if fault := self.other(headers, start):
                raise RangeError(f"{url}: {fault}")
            return start
        if response.status != 200:
            raise TransientError(f"{url}: unexpected answer {response.status}")
        # All of it: the server knows no ranges, or the file has changed.
        length, published = number(headers, "Content-Length"), self.download.size
        if None not in (length, published) and length != published:
            raise DownloadError(
                f"{url} has {length} bytes, but {published} are published"
            )
        self.note = dict(
            url=url,
            size=published if length is None else length,
            etag=headers.get("ETag"),
            last_modified=headers.get("Last-Modified"),
        )
        # In this order: a part must never stand beside the note of another version.
        self.path.write_bytes(b"")
        write_json(self.note_path, self.note)
        return 0

    def other(self, headers: Mapping[str, str], start: int) -> str | None:
        """Why a 206 is not the rest of this file."""
        span = headers.get("Content-Range") or ""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", span.strip())
        if not match or int(match[1]) != start:
            return f"asked for the bytes from {start}, got Content-Range {span!r}"
        size = self.note.get("size")
        if match[3] != "*" and size is not None and int(match[3]) != size:
            return f"it has {match[3]} bytes now and had {size}"
        for key, name in (("etag", "ETag"), ("last_modified", "Last-Modified")):
            new, old = headers.get(name), self.note.get(key)
            if new and old:
                # Mirrors may differ in the date of one ETag.
                return None if new == old else f"its {name} is {new} and was {old}"
        return None

    def write(self, response: http.client.HTTPResponse, url: str, start: int) -> None:
        """Puts the body where it belongs."""
        monitor, size = self.monitor, self.note.get("size")
        monitor.begin("fetching", size, start)
        monitor.check_room(self.path.parent)
        # Unbuffered: what came is in the file, whatever ends this process.
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(start)
            for piece in pieces(response, url, self.options):
                rest = memoryview(piece)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    raise DownloadError(unwritten(self.path, error)) from None
                monitor.received += len(piece)
                monitor.advance(len(piece))
                monitor.best = max(monitor.best, monitor.position)
        have = monitor.position
        if size is None and not have:
            # Headers that were cut off look the same.
            raise TransientError(f"{url}: an empty answer that names no length")
        if size is not None and have != size:
            raise TransientError(f"{url}: the connection ended at {have} of {size} B")

    def complete(self) -> None:
        """Checks the part and gives it its name.

        Raises:
            DownloadError: If its size or checksum is not the published one. It is
                deleted then.
        """
        if fault := _fault(self.download, self.path, self.monitor):
            self.path.unlink()
            self.note_path.unlink(missing_ok=True)
            raise DownloadError(
                f"{self.note.get('url')}: {fault}. What came was deleted"
            )
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.download.path)
        self.note_path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> str:
    """A disk's error in words."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    help_ = ". Make room and run it again" if full else ""
    return f"{path} cannot be written: {error.strerror or error}{help_}"


def fetch(download: Download, options: Options, monitor: Monitor | None = None) -> bool:
    """Fetches a file, or the rest of it.

    A file that is there is kept if its size and checksum are the published ones (where
    none is published, its name says that it is complete), and is fetched again
    otherwise.

    Returns:
        bool: ``False`` if it was there.

    Raises:
        DownloadError: If it cannot be had, or another process is fetching it.
        StoppedError: If the user stopped the run.
    """
    with alone(download.path):
        return fetch_unlocked(download, options, monitor or Monitor())


def fetch_unlocked(download: Download, options: Options, monitor: Monitor) -> bool:
    """:func:`fetch` for a caller that is :func:`alone` with the file."""
    if download.path.is_file() and not _fault(download, download.path, monitor):
        return False
    transfer = _Transfer(download, options, monitor)
    _from_any(download, transfer.attempt, options, monitor)
    transfer.complete()
    return True
