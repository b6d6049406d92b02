"""Fetches the datasets and the pretrained weights; a second run goes on from the first.

One engine serves ``tools/data/epic/download.py``, ``tools/data/hac/download.py`` and
``tools/data/weights/download.py``. It speaks plain HTTP(S) with the standard library.

A file is written as ``X.part``; ``X.part.json`` beside it notes its URL, its size and
what the server calls this version of it (``ETag``, ``Last-Modified``). The next try
asks for the rest with ``Range`` and, so that two versions of a file are never stitched
together, with ``If-Range``. ``X`` itself appears by a rename, when its size and its
published checksum are right. A kill at any moment loses no more than what was not yet
written.

None of the real servers could be tried while this was written: the tests run against
a local one, and what is assumed about the real ones stands in :data:`EPIC_URL`,
:func:`list_dataset` and :data:`WEIGHTS`.
"""

import contextlib
import errno
import fcntl
import fnmatch
import gzip
import hashlib
import http.client
import json
import lzma
import os
import pickle
import re
import shutil
import socket
import ssl
import stat
import string
import sys
import tarfile
import threading
import time
import urllib.error
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from mmaction_mbcd.datasets.epic_splits import (
    PARTICIPANTS,
    SPLITS,
    EpicSegment,
    read_splits,
)

EPIC_URL = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
"""Folder of ``{rgb,flow}/{train,test}/{participant}/{video}.tar``.

From the addresses that others' scripts fetch; this server could not be tried. By their
accounts a tar of ``rgb`` has the frames at its top and one of ``flow`` has the folders
``u`` and ``v``; :func:`epic_place` relies on no more than the frames' names and these
two folders."""

EPIC_PARTS = ("rgb", "flow")

HAC_REPO = "hdong51/Human-Animal-Cartoon"
HAC_ENDPOINT = "https://huggingface.co"

CHUNK = 1 << 18
"""Bytes that are read at a time, at most."""

STALL_BYTES = 1024
"""A connection that brings less within the timeout is given up."""

PROGRESS_BYTES = 1 << 20
"""A try that brings the file forward by this much does not count as a failed one."""

MAX_WAIT = 120.0
"""Seconds between two tries, at most."""

MAX_REDIRECTS = 10
MAX_LISTING = 64 << 20
MARKER = ".unpacked.json"

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


class DownloadError(Exception):
    """A file cannot be had. The message says why, and what would help."""


class DamagedArchiveError(DownloadError):
    """An archive that is not one, or that ends too early."""


class StoppedError(Exception):
    """The user stopped the run."""


class _TransientError(Exception):
    """May go away; ``after`` is how long the server asks to wait, in seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _MissingError(Exception):
    """404 or 410: another of the file's URLs may have it."""


class _RangeError(_TransientError):
    """416: there is no rest."""


# --- what to do ---------------------------------------------------------------


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


@dataclass(frozen=True)
class Options:
    """How files are fetched.

    Attributes:
        workers: Files at the same time.
        attempts: Tries in a row that may fail.
        timeout: Seconds for connecting, and without data before a try is given up.
        backoff: Seconds before the second try; doubled for each further one.
        keep_archives: Do not delete an archive after unpacking it.
        quiet: Show no progress.

    Raises:
        ValueError: If a number is out of range.
    """

    workers: int = 4
    attempts: int = 5
    timeout: float = 30.0
    backoff: float = 1.0
    keep_archives: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("attempts", 1), ("backoff", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"{name} must be at least {least}, got {getattr(self, name)}"
                )
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be positive, got {self.timeout}")


class Monitor:
    """What a worker tells the others about its file.

    Attributes:
        name: Of the file.
        phase: ``'fetching'``, ``'checking'``, ``'unpacking'`` ...
        position: Bytes of the phase that are done.
        size: Bytes of the phase, if known.
        best: The largest position so far, over all tries.
        received: Bytes that came over the network.
    """

    def __init__(
        self,
        name: str = "",
        stop: threading.Event | None = None,
        siblings: Sequence["Monitor"] = (),
    ) -> None:
        self.name = name
        self.phase, self.position, self.size = "waiting", 0, None
        self.best = self.received = 0
        self._stop = stop or threading.Event()
        self._siblings = siblings or [self]

    def begin(self, phase: str, size: int | None, position: int = 0) -> None:
        """Starts a phase."""
        self.phase, self.size, self.position = phase, size, position

    def advance(self, count: int) -> None:
        """Adds bytes to the phase."""
        self.check()
        self.position += count

    def check(self) -> None:
        """Raises :class:`StoppedError` if the user has stopped the run."""
        if self._stop.is_set():
            raise StoppedError

    def wait(self, seconds: float) -> None:
        """Sleeps, but not longer than the run."""
        self._stop.wait(seconds)
        self.check()

    def check_room(self, folder: Path) -> None:
        """Raises :class:`DownloadError` if the disk cannot hold what is under way."""
        need = sum(
            max(m.size - m.position, 0)
            for m in list(self._siblings)
            if m.phase in ("fetching", "unpacking") and m.size
        )
        free = shutil.disk_usage(folder).free
        if need > free:
            raise DownloadError(
                f"{decimal(need)} more are needed for what is being fetched and "
                f"unpacked, but {folder} has {decimal(free)} free. Make room and run "
                "it again"
            )


# --- one connection -----------------------------------------------------------


def check_url(url: str) -> str:
    """Returns a URL that can be fetched.

    Raises:
        ValueError: If it is none of http or https, or names no host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL http://... or https://...")
    return url


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


class _Timed:
    """A connection whose headers come in time.

    The socket's timeout starts anew with every byte.
    """

    def getresponse(self):
        sock, late = self.sock, threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(2 * self.timeout, cut)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
            if late.is_set():
                # Headers that were cut off look like complete ones.
                response.close()
        finally:
            timer.cancel()
            if late.is_set():
                raise TimeoutError from None
        return response


class _TimedHTTP(_Timed, http.client.HTTPConnection):
    pass


class _TimedHTTPS(_Timed, http.client.HTTPSConnection):
    pass


class _HTTP(HTTPHandler):
    def do_open(self, http_class, req, **kwargs):
        return super().do_open(_TimedHTTP, req, **kwargs)


class _HTTPS(HTTPSHandler):
    def do_open(self, http_class, req, **kwargs):
        return super().do_open(_TimedHTTPS, req, **kwargs)


class _NoRedirects(HTTPRedirectHandler):
    """Leaves them to :func:`_open`, which knows what a new host must not get."""

    def http_error_302(self, req, fp, code, msg, headers):
        return None

    http_error_301 = http_error_303 = http_error_302
    http_error_307 = http_error_308 = http_error_302


@lru_cache(maxsize=1)
def _opener() -> OpenerDirector:
    return build_opener(_HTTP, _HTTPS, _NoRedirects)


def _retry_after(headers: Mapping[str, str]) -> float:
    value = (headers.get("Retry-After") or "").strip()
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    message = f"{url}: {error.code} {error.reason}"
    if error.code in (404, 410):
        return _MissingError(message)
    if error.code == 416:
        return _RangeError(message)
    if error.code in _RETRIED:
        return _TransientError(message, _retry_after(error.headers))
    if error.code in (401, 403):
        message += (
            ". The server wants to know who asks: the data may have to be requested, "
            "or its terms accepted, on its web page first"
        )
    return DownloadError(message)


def _open(
    url: str,
    options: Options,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    method: str = "GET",
) -> http.client.HTTPResponse:
    """Opens a URL and follows redirects.

    The token goes to the URL's own scheme, host and port only.

    Raises:
        _MissingError: 404 or 410.
        _TransientError: What may go away: no connection, no answer in time, 5xx ...
        DownloadError: What will not.
    """
    home, asked = _origin(url), url
    for _ in range(MAX_REDIRECTS + 1):
        request = Request(url, headers=dict(headers or {}), method=method)
        request.add_header("User-Agent", "mmaction_mbcd")
        if token and _origin(url) == home:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            return _opener().open(request, timeout=options.timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _REDIRECTS:
                    raise _refusal(error, url) from None
                location = error.headers.get("Location")
        except http.client.InvalidURL as error:
            raise DownloadError(f"{url!r} cannot be asked for: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise DownloadError(
                    f"{url}: the server's certificate is not trusted ({reason})"
                ) from None
            raise _TransientError(f"{url}: {_said(reason)}") from None
        if not location:
            raise DownloadError(f"{url} redirects to nowhere")
        # Headers are decoded as ISO-8859-1; this gives the bytes back.
        location = quote(location, encoding="iso-8859-1", safe=string.punctuation)
        before, url = url, urljoin(url, location)
        schemes = urlsplit(before).scheme, urlsplit(url).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise DownloadError(
                f"{before} redirects to {location!r}, which is refused: only http(s) "
                "is followed, and https never leads to http"
            )
    raise DownloadError(f"{asked}: more than {MAX_REDIRECTS} redirects")


def _said(error: object) -> str:
    """A network error in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _pieces(
    response: http.client.HTTPResponse, url: str, options: Options
) -> Iterator[bytes]:
    """The body. One that all but stops is given up.

    A socket's timeout starts anew with every byte; so each span of that length has
    to bring :data:`STALL_BYTES`.
    """
    start, count = time.monotonic(), 0
    while True:
        try:
            # read() would wait for all of its bytes.
            piece = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(f"{url}: {_said(error)}") from None
        if not piece:
            return
        yield piece
        count += len(piece)
        if (span := time.monotonic() - start) > options.timeout:
            if count < STALL_BYTES:
                raise _TransientError(f"{url}: {count} bytes in {span:.0f} s")
            start, count = time.monotonic(), 0


def _persist(attempt: Callable[[], T], options: Options, monitor: Monitor) -> T:
    """Repeats what fails for a reason that may go away.

    Tries that brought the file forward do not count, so that a bad line can fetch a
    large file. Each of them brings :data:`PROGRESS_BYTES`, so it ends.
    """
    failures = 0
    while True:
        monitor.check()
        best = monitor.best
        try:
            return attempt()
        except _TransientError as error:
            if monitor.best - best >= PROGRESS_BYTES:
                failures = 0
            failures += 1
            if failures >= options.attempts:
                raise DownloadError(
                    f"{error} (given up after {failures} tries; run it again later)"
                ) from None
            wait = options.backoff * 2 ** min(failures - 1, 16)
            monitor.begin("waiting", monitor.size, monitor.position)
            monitor.wait(min(max(wait, error.after), MAX_WAIT))


def _length(headers: Mapping[str, str]) -> int | None:
    value = (headers.get("Content-Length") or "").strip()
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def remote_size(download: Download, options: Options, monitor: Monitor) -> int | None:
    """Asks for a file's size in bytes with HEAD; ``None`` if the server is silent.

    Raises:
        DownloadError: If the file is not there, or the server is not.
    """
    if download.size is not None:
        return download.size
    missing = []
    for url in download.urls:
        head = partial(_open, url, options, token=download.token, method="HEAD")
        try:
            with _persist(head, options, monitor) as response:
                return _length(response.headers)
        except _MissingError as error:
            missing.append(str(error))
    raise DownloadError("; ".join(missing))


# --- one file -----------------------------------------------------------------


def _sync(folder: Path) -> None:
    """Makes a rename in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_name(f"{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict:
    """The object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
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
        self.note = _read_json(self.note_path)
        # A server that answered a range wrongly is not asked for one again.
        self.whole = False

    def run(self) -> None:
        """Completes the part.

        Raises:
            DownloadError: If no URL has the file, or it does not come.
        """
        missing = []
        for url in self.download.urls:
            try:
                _persist(partial(self.attempt, url), self.options, self.monitor)
                return
            except _MissingError as error:
                missing.append(str(error))
        raise DownloadError("; ".join(missing))

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
            response = _open(url, self.options, headers, self.download.token)
        except _RangeError:
            self.whole = True
            raise
        with response:
            start, size = self.agree(response, url, start)
            self.write(response, url, start, size)

    def agree(
        self, response: http.client.HTTPResponse, url: str, start: int
    ) -> tuple[int, int | None]:
        """Where the body starts in the file, and the file's size."""
        length, headers = _length(response.headers), response.headers
        if response.status == 206 and start:
            if fault := self.other(headers, start):
                self.whole = True
                raise _TransientError(f"{url}: {fault}")
            return start, self.note.get("size")
        if response.status != 200:
            raise _TransientError(f"{url}: unexpected answer {response.status}")
        # All of it: the server knows no ranges, or the file has changed.
        published = self.download.size
        if None not in (length, published) and length != published:
            raise DownloadError(
                f"{url} has {length} bytes, but {published} are published"
            )
        length = published if length is None else length
        self.note = dict(
            url=url,
            size=length,
            etag=headers.get("ETag"),
            last_modified=headers.get("Last-Modified"),
        )
        # In this order: a part must never stand beside the note of another version.
        with open(self.path, "wb"):
            pass
        _write_json(self.note_path, self.note)
        return 0, length

    def other(self, headers: Mapping[str, str], start: int) -> str | None:
        """Why a 206 is not the rest of this file."""
        span = headers.get("Content-Range") or ""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", span.strip())
        if not match or int(match[1]) != start:
            return f"asked for the bytes from {start}, got Content-Range {span!r}"
        size = self.note.get("size")
        if match[3] != "*" and size is not None and int(match[3]) != size:
            return f"it has {match[3]} bytes now and had {size}"
        names = dict(etag="ETag", last_modified="Last-Modified")
        for key, name in names.items():
            new, old = headers.get(name), self.note.get(key)
            if new and old:
                # Mirrors may differ in the date of one ETag.
                return None if new == old else f"its {name} is {new} and was {old}"
        return None

    def write(
        self,
        response: http.client.HTTPResponse,
        url: str,
        start: int,
        size: int | None,
    ) -> None:
        """Puts the body where it belongs."""
        monitor = self.monitor
        monitor.begin("fetching", size, start)
        monitor.check_room(self.path.parent)
        # Unbuffered: what came is in the file, whatever ends this process.
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(start)
            for piece in _pieces(response, url, self.options):
                rest = memoryview(piece)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except OSError as error:
                    raise DownloadError(_unwritten(self.path, error)) from None
                monitor.received += len(piece)
                monitor.advance(len(piece))
                monitor.best = max(monitor.best, monitor.position)
        have = monitor.position
        if size is None and not have:
            # Headers that were cut off look the same.
            raise _TransientError(f"{url}: an empty answer that names no length")
        if size is not None and have != size:
            raise _TransientError(f"{url}: the connection ended at {have} of {size} B")

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
        _sync(self.path.parent)
        self.note_path.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> str:
    help_ = ". Make room and run it again" if error.errno in _FULL else ""
    return f"{path} cannot be written: {error.strerror or error}{help_}"


def fetch(
    download: Download, options: Options | None = None, monitor: Monitor | None = None
) -> bool:
    """Fetches a file, or the rest of it.

    A file that is there is kept if its size and checksum are the published ones (where
    none is published, its name says that it is complete), and is fetched again
    otherwise.

    Returns:
        bool: ``False`` if it was there.

    Raises:
        DownloadError: If it cannot be had.
        StoppedError: If the user stopped the run.
    """
    with _alone(download.path):
        return _fetch(download, options or Options(), monitor or Monitor())


def _fetch(download: Download, options: Options, monitor: Monitor) -> bool:
    path = download.path
    if path.is_file() and not _fault(download, path, monitor):
        return False
    transfer = _Transfer(download, options, monitor)
    transfer.run()
    transfer.complete()
    return True


# --- many files ---------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A file, and what is done with it.

    Attributes:
        download: The file.
        finish: Called with the worker's monitor when the file is there; returns a
            remark for the report, or ``''``.
        done: Says, without the network, that there is nothing left to do: a remark
            or ``''`` if so, else ``None``.
        archive: If ``finish`` unpacks the file, into which folder.
    """

    download: Download
    finish: Callable[[Monitor], str] | None = None
    done: Callable[[], str | None] = lambda: None
    archive: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: Of the file.
        state: ``'fetched'``, ``'there'``, ``'failed'`` or ``'stopped'``.
        text: The reason, or a remark.
        received: Bytes that came over the network.
    """

    name: str
    state: str
    text: str = ""
    received: int = 0

    @property
    def failed(self) -> bool:
        """Whether something is left to do."""
        return self.state in ("failed", "stopped")


def _carry_out(job: Job, options: Options, monitor: Monitor) -> tuple[str, str]:
    """Does a job; returns its state and a remark."""
    if (remark := job.done()) is not None:
        return "there", remark
    download, fresh, remark = job.download, False, ""
    try:
        with _alone(download.path):
            # Another process may have done it meanwhile.
            if (remark := job.done()) is not None:
                return "there", remark
            fresh = _fetch(download, options, monitor)
            remark = job.finish(monitor) if job.finish else ""
            fresh |= job.finish is not None
    except DamagedArchiveError as error:
        if fresh:
            # Else the next run would stumble over it again.
            download.path.unlink(missing_ok=True)
        help_ = "It was deleted: run it again" if fresh else "Delete it, run it again"
        return "failed", f"{error}. {help_}"
    except DownloadError as error:
        return "failed", str(error)
    except OSError as error:
        return "failed", _unwritten(Path(error.filename or download.path), error)
    return ("fetched" if fresh else "there"), remark


class _Crew:
    """Threads that carry out jobs, and their monitors."""

    def __init__(self, jobs: Sequence[Job], options: Options) -> None:
        self.jobs, self.options = jobs, options
        self.outcomes: dict[int, Outcome] = {}
        self.active: list[Monitor] = []
        self._queue = deque(enumerate(jobs))
        self._stop = threading.Event()
        # Daemons: one that waits for the network must not keep the program.
        self._threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(min(options.workers, len(jobs)))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Waits for the end; whether it has come."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:  # started
                thread.join(max(end - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        self._stop.set()
        self.wait(1.0)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                index, job = self._queue.popleft()
            except IndexError:
                return
            name = job.download.name
            monitor = Monitor(name, self._stop, self.active)
            self.active.append(monitor)
            try:
                state, text = _carry_out(job, self.options, monitor)
            except StoppedError:
                return
            except Exception as error:
                state, text = "failed", f"{type(error).__name__}: {error}"
            finally:
                self.active.remove(monitor)
            self.outcomes[index] = Outcome(name, state, text, monitor.received)

    def result(self) -> list[Outcome]:
        """In the order of the jobs."""
        return [
            self.outcomes.get(i) or Outcome(job.download.name, "stopped")
            for i, job in enumerate(self.jobs)
        ]


class _Display:
    """Bars on a terminal, elsewhere a line per file and one a minute."""

    def __init__(self, crew: _Crew, console: Console) -> None:
        self.crew, self.console = crew, console
        self._bars: dict[Monitor, int] = {}
        self._shown, self._last = 0, time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        sizes = [job.download.size for job in crew.jobs]
        self._sizes = None if None in sizes else sizes
        self._all = self._progress.add_task("", total=self._sizes and sum(self._sizes))

    def __enter__(self) -> "_Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Shows what has happened since."""
        finished, active = dict(self.crew.outcomes), list(self.crew.active)
        outcomes = list(finished.values())
        files = f"{len(outcomes)}/{len(self.crew.jobs)} files"
        count = sum(o.received for o in outcomes) + sum(m.received for m in active)
        for number, outcome in enumerate(outcomes[self._shown :], self._shown + 1):
            if outcome.failed or not self.console.is_terminal:
                text = f"{outcome.name}: {outcome.state}"
                if outcome.text:
                    text += f" ({outcome.text})"
                self._line(f"[{number}/{len(self.crew.jobs)}] {text}")
        self._shown = len(outcomes)
        if not self.console.is_terminal:
            if time.monotonic() - self._last >= 60:
                self._last = time.monotonic()
                self._line(f"{files}, {decimal(count)}")
            return
        if self._sizes:
            count = sum(self._sizes[i] for i in finished) + sum(m.best for m in active)
        self._progress.update(self._all, description=files, completed=count)
        for monitor in [m for m in self._bars if m not in active]:
            self._progress.remove_task(self._bars.pop(monitor))
        for monitor in active:
            if monitor not in self._bars:
                self._bars[monitor] = self._progress.add_task("")
            self._progress.update(
                self._bars[monitor],
                description=escape(f"{monitor.phase} {monitor.name}"),
                total=monitor.size,
                completed=monitor.position,
            )

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def needed(jobs: Iterable[Job], options: Options) -> int:
    """Bytes that jobs will take at their worst, as far as their sizes are published.

    What comes out of an archive is taken to be as large as the archive: the archives
    here hold pictures, videos and sounds.
    """
    plain, archives, unpacked = 0, [], 0
    for job in jobs:
        path, size = job.download.path, job.download.size or 0
        paths = (path, path.with_name(f"{path.name}.part"))
        have = max(p.stat().st_size if p.is_file() else 0 for p in paths)
        rest = max(size - have, 0)
        if job.archive:
            archives.append(rest)
            unpacked += size
        else:
            plain += rest
    if not options.keep_archives:
        archives = sorted(archives, reverse=True)[: options.workers]
    return plain + sum(archives) + unpacked


def run(
    jobs: Sequence[Job], options: Options, console: Console | None = None
) -> list[Outcome]:
    """Carries out jobs, several at a time.

    Ctrl-C stops it within about a second; what is unfinished is named as
    ``'stopped'``, and the next run goes on from there.

    Args:
        jobs: No two for the same path.
        options: See there.
        console: Where progress goes; standard error by default.

    Returns:
        list[Outcome]: In the order of the jobs.

    Raises:
        ValueError: If two jobs write one path.
        DownloadError: If the sizes are known and the disk is too small.
    """
    paths = Counter(job.download.path for job in jobs)
    path, count = max(paths.items(), key=lambda item: item[1], default=(None, 0))
    if count > 1:
        raise ValueError(f"{count} downloads would write {path}")
    todo = [job for job in jobs if job.done() is None]
    if todo:
        folder = todo[0].download.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        need, free = needed(todo, options), shutil.disk_usage(folder).free
        if need > free:
            raise DownloadError(
                f"about {decimal(need)} are needed, but {folder} has {decimal(free)} "
                "free. Nothing was started; make room"
            )
    crew = _Crew(jobs, options)
    console = console or Console(stderr=True, quiet=options.quiet)
    try:
        with _Display(crew, console) as display:
            crew.start()
            while not crew.wait(0.1):
                display.update()
            display.update()
    except KeyboardInterrupt:
        crew.stop()
    return crew.result()


def report(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Prints what became of a run; the program's exit code, 0 or 1.

    Every failure is named, with its reason, on standard error.

    Args:
        outcomes: Of :func:`run`.
        seconds: How long it took.
    """
    states = Counter(outcome.state for outcome in outcomes)
    size = decimal(sum(outcome.received for outcome in outcomes))
    words = dict(there="there already", failed="failed", stopped="stopped")
    text = "".join(f", {states[s]} {w}" for s, w in words.items() if states[s])
    fetched = f"{states['fetched']} fetched ({size} in {seconds:.0f} s)"
    print(f"{len(outcomes)} files: {fetched}{text}")
    for outcome in outcomes:
        if outcome.state == "failed":
            print(f"failed: {outcome.name}: {outcome.text}", file=sys.stderr)
        elif outcome.text:
            print(f"{outcome.name}: {outcome.text}")
    if stopped := [o.name for o in outcomes if o.state == "stopped"]:
        more = f" and {len(stopped) - 5} more" if len(stopped) > 5 else ""
        print(
            f"stopped: {', '.join(stopped[:5])}{more}; run it again to go on",
            file=sys.stderr,
        )
    return int(any(outcome.failed for outcome in outcomes))


def dry_run(jobs: Sequence[Job], options: Options, sizes: bool = False) -> int:
    """Prints every URL with the path that it would go to; writes nothing.

    Args:
        jobs: What a run would do.
        options: For ``sizes``.
        sizes: Ask the servers for sizes that are not published (HEAD).

    Returns:
        int: 1 if ``sizes`` and some file is not to be had, else 0.
    """
    faults, known, unknown, total = [], 0, 0, 0
    for job in jobs:
        download, size = job.download, job.download.size
        if job.done() is not None:
            print(f"{download.urls[0]} -> {download.path} (done)")
            continue
        if sizes:
            try:
                size = remote_size(download, options, Monitor())
            except DownloadError as error:
                faults.append(f"failed: {download.name}: {error}")
        known, unknown = known + (size is not None), unknown + (size is None)
        total += size or 0
        text = "" if size is None else f" ({decimal(size)})"
        into = f" -> {job.archive}" if job.archive else ""
        print(f"{' or '.join(download.urls)} -> {download.path}{into}{text}")
    more = f", {unknown} of unknown size" if unknown else ""
    print(f"dry run: {known + unknown} files, {decimal(total)}{more}; nothing written")
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def add_options(parser) -> None:
    """Adds the options that the tools share to an ``argparse`` parser."""
    default = Options()
    group = parser.add_argument_group("download")
    group.add_argument("--workers", type=int, default=default.workers, metavar="N")
    group.add_argument(
        "--attempts",
        type=int,
        default=default.attempts,
        metavar="N",
        help="tries in a row that may fail",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="SECONDS",
        help="for connecting, and without data before a try is given up",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print URL -> path; write nothing"
    )
    group.add_argument(
        "--sizes", action="store_true", help="with --dry-run: ask for sizes (HEAD)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress")


def options_of(args) -> Options:
    """The options that :func:`add_options` added, from the parsed arguments.

    Raises:
        ValueError: If a number is out of range, or an option has no effect.
    """
    if args.sizes and not args.dry_run:
        raise ValueError("--sizes belongs to --dry-run")
    return Options(
        workers=args.workers,
        attempts=args.attempts,
        timeout=args.timeout,
        keep_archives=getattr(args, "keep_archives", False),
        quiet=args.quiet,
    )


def exit_code(command: Callable[[], int]) -> int:
    """Runs a tool: its code, 1 if something could not be had, 2 if it was misused."""
    try:
        return command()
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DownloadError as error:
        print(f"failed: {error}", file=sys.stderr)
    except (KeyboardInterrupt, StoppedError):
        print("stopped; run it again to go on", file=sys.stderr)
    return 1


# --- archives -----------------------------------------------------------------

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


def _mark(path: Path, archive: Path, name: str, result: Unpacked) -> None:
    """Notes that an archive was unpacked, when its files are on the disk."""
    os.sync()
    path.parent.mkdir(parents=True, exist_ok=True)
    size = archive.stat().st_size
    _write_json(
        path, dict(archive=name, size=size, files=len(result.names), bytes=result.size)
    )


# --- EPIC-Kitchens ------------------------------------------------------------


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


def _epic_done(part: str, folder: Path) -> str | None:
    if (folder / MARKER).is_file():
        return ""
    parts = [folder] if part == "rgb" else [folder / "u", folder / "v"]
    if all(any(p.glob("frame_*.jpg")) for p in parts):
        return "kept, though it was not unpacked by this tool"
    return None


def _epic_finish(part: str, folder: Path, archive: Path, monitor: Monitor) -> str:
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    monitor.begin("unpacking", archive.stat().st_size)
    monitor.check_room(archive.parent)
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
    _mark(temporary / MARKER, archive, archive.name, result)
    os.replace(temporary, folder)
    _sync(folder.parent)
    counts = "/".join(map(str, sides.values()))
    return "" if len(set(sides.values())) == 1 else f"u and v have {counts} frames"


def epic_jobs(
    root: Path,
    videos: Sequence[EpicVideo],
    parts: Sequence[str] = EPIC_PARTS,
    base_url: str = EPIC_URL,
    keep_archives: bool = False,
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
            done = partial(_epic_done, part, folder)
            if done() is None and folder.exists() and os.listdir(folder):
                raise ValueError(
                    f"{folder} holds files, but no {part} frames: move it away"
                )
            urls = [
                f"{base_url.rstrip('/')}/{part}/{official}/{kitchen}/{file}"
                for official in ("train", "test")
            ]
            jobs.append(
                Job(
                    Download(tuple(urls), archive, f"{part}/{file}"),
                    _unpacking(archive, keep_archives, _epic_finish, part, folder),
                    done,
                    folder,
                )
            )
    return jobs


def _unpacking(
    archive: Path, keep: bool, unpacks: Callable[..., str], *args
) -> Callable[[Monitor], str]:
    """A job's last step: unpacks an archive, then deletes it."""

    def finish(monitor: Monitor) -> str:
        remark = unpacks(*args, archive, monitor)
        if not keep:
            archive.unlink()
        return remark

    return finish


def link_splits(paths: Sequence[Path]) -> None:
    """Makes every path a relative link to the first one, where nothing is yet."""
    first, *others = paths
    for path in others:
        if first.exists() and not os.path.lexists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(first, path.parent))


def unpack_epic_audio(
    archive: Path, root: Path, videos: Sequence[EpicVideo]
) -> tuple[int, list[str]]:
    """Takes the sounds of some videos out of a zip.

    Args:
        archive: With a ``P08_01.wav`` per video, in whatever folder.
        root: The data root. A wav that is there is kept.
        videos: Whose sounds are wanted.

    Returns:
        tuple: How many came out of the zip, and the videos that have no sound.

    Raises:
        DownloadError: As in :func:`unpack`.
    """
    places = {
        f"{v.video}.wav": str(v.wav(root).relative_to(root))
        for v in videos
        if not v.wav(root).exists()
    }
    result = unpack(
        archive, root, lambda name: places.get(name.rpartition("/")[2]), Monitor()
    )
    for video in videos:
        link_splits([video.wav(root, split) for split in video.splits])
    return len(result.names), [v.video for v in videos if not v.wav(root).exists()]


def download_epic(
    root: Path,
    splits: Path,
    domains: Sequence[str] = tuple(PARTICIPANTS),
    parts: Sequence[str] = EPIC_PARTS,
    base_url: str = EPIC_URL,
    audio_zip: Path | None = None,
    options: Options | None = None,
    dry: bool = False,
    sizes: bool = False,
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
        domains: Some of ``D1``, ``D2``, ``D3``.
        parts: Some of ``rgb``, ``flow``.
        base_url: See :data:`EPIC_URL`.
        audio_zip: A zip of wavs that the user has fetched.
        options: See there.
        dry: Print what would be done.
        sizes: With ``dry``, ask for the sizes.

    Returns:
        int: 0, or 1 if something failed (it is named).

    Raises:
        ValueError, FileNotFoundError, pickle.UnpicklingError: For what the caller
            gave, see :func:`.epic_splits.read_splits`.
    """
    options = options or Options()
    suffix = ".csv" if any(splits.glob("D?_*.csv")) else ".pkl"
    videos = epic_videos(read_splits(str(splits), suffix), domains)
    if audio_zip and not zipfile.is_zipfile(audio_zip):
        raise ValueError(f"{audio_zip} is no zip file")
    jobs = epic_jobs(root, videos, parts, base_url, options.keep_archives)
    if dry:
        return dry_run(jobs, options, sizes)
    start, code = time.monotonic(), 0
    if jobs:
        outcomes = run(jobs, options)
        code = report(outcomes, time.monotonic() - start)
        if any(outcome.state == "stopped" for outcome in outcomes):
            return code
    for video in videos:
        for part in parts:
            link_splits([video.path(root, part, split) for split in video.splits])
    if audio_zip:
        count, silent = unpack_epic_audio(audio_zip, root, videos)
        print(f"{count} wavs from {audio_zip}")
        if silent:
            print(
                f"failed: {audio_zip} lacks the wav of {', '.join(silent)}; "
                "tools/data/extract_audio.py makes them from the videos",
                file=sys.stderr,
            )
            code = 1
    return code


# --- Human-Animal-Cartoon -----------------------------------------------------


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
        with _open(url, options, token=token) as response:
            body = bytearray()
            for piece in _pieces(response, url, options):
                body += piece
                if len(body) > MAX_LISTING:
                    raise DownloadError(f"{url}: more than {decimal(MAX_LISTING)}")
            try:
                # A list that was cut off is no JSON.
                return json.loads(body), response.headers.get("Link") or ""
            except ValueError:
                raise _TransientError(
                    f"{url} is no list of files; it begins with {bytes(body[:40])!r}"
                ) from None

    return _persist(attempt, options, monitor)


def list_dataset(
    repo: str = HAC_REPO,
    revision: str = "main",
    endpoint: str = HAC_ENDPOINT,
    token: str | None = None,
    options: Options | None = None,
) -> list[RemoteFile]:
    """The files of a dataset repository on the Hugging Face Hub or a mirror of it.

    ``{endpoint}/api/datasets/{repo}/tree/{revision}?recursive=true`` answers with a
    list of ``{type, path, size, lfs: {oid, size}}``, where ``oid`` is a SHA-256; a
    header ``Link: <...>; rel="next"`` leads to the rest. That is the Hub's documented
    interface; it could not be tried.

    Args:
        repo: ``owner/name``.
        revision: A branch, tag or commit.
        endpoint: The server.
        token: Sent to the endpoint's host only.
        options: See there.

    Raises:
        ValueError: If an argument is malformed.
        DownloadError: If there is no such list, or a path in it leads out of the
            repository.
    """
    options, monitor = options or Options(), Monitor()
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ValueError(f"repo must be owner/name, got {repo!r}")
    endpoint = check_url(endpoint).rstrip("/")
    url = (
        f"{endpoint}/api/datasets/{repo}/tree/{quote(revision, safe='')}?recursive=true"
    )
    files, seen = [], set()
    while url:
        seen.add(url)
        ours = token if _origin(url) == _origin(endpoint) else None
        try:
            entries, link = _page(url, ours, options, monitor)
        except _MissingError as error:
            raise DownloadError(
                f"{error}. Is there a dataset {repo} with the revision {revision}?"
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


_HAC_DOMAINS = ("human", "animal", "cartoon")
_HAC_SPLIT = re.compile(rf"HAC_(train|test)_only_({'|'.join(_HAC_DOMAINS)})\.csv")
_HAC_KINDS = (
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
    if _HAC_SPLIT.fullmatch(file):
        return f"HAC_Splits/{file}"
    domains = []
    for folder in folders:
        words = set(re.split("[^a-z]+", folder.lower())) & set(_HAC_DOMAINS)
        domains += words if len(words) == 1 else []
    for pattern, kind in _HAC_KINDS:
        if domains and pattern.fullmatch(file):
            return f"{domains[-1]}/{kind}/{file}"
    return str(PurePosixPath(archive).parent / name)


def _hac_finish(
    root: Path, file: RemoteFile, marker: Path, archive: Path, monitor: Monitor
) -> str:
    marker.unlink(missing_ok=True)
    monitor.begin("unpacking", archive.stat().st_size)
    monitor.check_room(root)
    place = partial(hac_place, archive=file.path)
    result = unpack(archive, root, place, monitor)
    _mark(marker, archive, file.path, result)
    return f"{len(result.names)} files unpacked"


def _hac_done(file: RemoteFile, marker: Path) -> str | None:
    note = _read_json(marker)
    same = note.get("archive") == file.path
    return "" if same and file.size in (None, note.get("size")) else None


def hac_jobs(
    root: Path,
    files: Sequence[RemoteFile],
    repo: str = HAC_REPO,
    revision: str = "main",
    endpoint: str = HAC_ENDPOINT,
    token: str | None = None,
    keep_archives: bool = False,
) -> list[Job]:
    """One job per file of the repository; archives are unpacked into the root."""
    base = f"{endpoint.rstrip('/')}/datasets/{repo}/resolve/{quote(revision, safe='')}"
    jobs = []
    for file in files:
        url = f"{base}/{quote(file.path)}"
        sha256 = f"sha256:{file.sha256}" if file.sha256 else None
        archive = bool(archive_suffix(file.path))
        place = f"archives/{file.path}" if archive else hac_place(file.path)
        if place is None:
            continue
        path = root / safe_name(place)
        job = Job(Download((url,), path, file.path, file.size, sha256, token))
        if archive:
            marker = root / ".unpacked" / f"{quote(file.path, safe='')}.json"
            finish = _unpacking(path, keep_archives, _hac_finish, root, file, marker)
            done = partial(_hac_done, file, marker)
            job = Job(job.download, finish, done, root)
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
        str(root), pipelines, sources=_HAC_DOMAINS, use="train", lazy_init=True
    )
    counts = []
    for domain in _HAC_DOMAINS:
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
    root: Path,
    repo: str = HAC_REPO,
    revision: str = "main",
    endpoint: str = HAC_ENDPOINT,
    exclude: Sequence[str] = ("*epic*",),
    options: Options | None = None,
    dry: bool = False,
    sizes: bool = False,
) -> int:
    """Fetches and unpacks Human-Animal-Cartoon, and checks that it is complete.

    Args:
        root: The data root.
        repo: See :func:`list_dataset`, as for the next two.
        revision: A branch, tag or commit.
        endpoint: The server. It gets the token in ``HF_TOKEN``, if that is set.
        exclude: Files that are left out, as shell patterns of their paths, in lower
            case. The repository may also hold the sounds of EPIC-Kitchens.
        options: See there.
        dry: List the files and print what would be done.
        sizes: Only for a listing that names no sizes.

    Returns:
        int: 0, or 1 if something failed or is missing (it is named).

    Raises:
        ValueError: If an argument is malformed.
        DownloadError: If there is no list of files.
    """
    options, token = options or Options(), os.environ.get("HF_TOKEN") or None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("HF_TOKEN holds characters that no token has")
    files = list_dataset(repo, revision, endpoint, token, options)
    wanted = []
    for file in files:
        name = file.path.lower()
        if file.path.rpartition("/")[2].startswith("."):
            continue
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in exclude):
            print(f"left out: {file.path}")
            continue
        wanted.append(file)
        if re.search(r"\.(7z|rar|z\d\d|\d{3})$", name):
            print(f"to be unpacked by hand: {file.path}")
    jobs = hac_jobs(
        root, wanted, repo, revision, endpoint, token, options.keep_archives
    )
    if dry:
        return dry_run(jobs, options, sizes)
    start = time.monotonic()
    outcomes = run(jobs, options)
    code = report(outcomes, time.monotonic() - start)
    if any(outcome.state == "stopped" for outcome in outcomes):
        return code
    return report_hac(root) or code


# --- pretrained weights -------------------------------------------------------

_MMACTION = "https://download.openmmlab.com/mmaction/recognition"

WEIGHTS = {
    "video": f"{_MMACTION}/slowfast/slowfast_r101_8x8x1_256e_kinetics400_rgb/"
    "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth",
    "flow": f"{_MMACTION}/slowonly/slowonly_r50_8x8x1_256e_kinetics400_flow/"
    "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth",
    "audio": "http://www.robots.ox.ac.uk/~vgg/data/vggsound/models/H.pth.tar",
}
"""The files that the configs look for in ``checkpoints/``, by modality. The servers
could not be tried."""


def weight_jobs(folder: Path, modalities: Sequence[str] = tuple(WEIGHTS)) -> list[Job]:
    """One job per modality.

    MMAction2 ends the name of a checkpoint with the first eight digits of its SHA-256.
    None is published for VGGSound's ``H.pth.tar``.

    Raises:
        ValueError: If a modality has no weights.
    """
    jobs = []
    for modality in dict.fromkeys(modalities):
        if modality not in WEIGHTS:
            raise ValueError(
                f"no weights for {modality!r}; there are some for {list(WEIGHTS)}"
            )
        url = WEIGHTS[modality]
        name = url.rpartition("/")[2]
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", name)
        checksum = f"sha256:{prefix[1]}" if prefix else None
        jobs.append(Job(Download((url,), folder / name, name, checksum=checksum)))
    return jobs


def download_weights(
    folder: Path,
    modalities: Sequence[str] = tuple(WEIGHTS),
    options: Options | None = None,
    dry: bool = False,
    sizes: bool = False,
) -> int:
    """Fetches the pretrained weights and prints their SHA-256.

    Args:
        folder: ``checkpoints``, where the configs look.
        modalities: Some of ``video``, ``flow``, ``audio``.
        options: See there.
        dry: Print what would be done.
        sizes: With ``dry``, ask for the sizes.

    Returns:
        int: 0, or 1 if something failed (it is named).

    Raises:
        ValueError: If a modality has no weights.
    """
    options = options or Options()
    jobs = weight_jobs(folder, modalities)
    if dry:
        return dry_run(jobs, options, sizes)
    start = time.monotonic()
    outcomes = run(jobs, options)
    code = report(outcomes, time.monotonic() - start)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if not outcome.failed:
            published = (job.download.checksum or "sha256:none")[7:]
            sha256 = digest(job.download.path)
            print(f"sha256 {sha256}  {job.download.name} (published: {published})")
    return code
