"""One file: the rest of it after an interruption, and whether it is the right one.

A file of EPIC-Kitchens has gigabytes, so an interrupted one must go on where it was,
also in the next run. ``huggingface_hub`` has a request that does, and shows a bar; here
the part is kept. It is called after the URL, the size and the server's name for this
version of the file, so that two versions are never stitched together, and gets the
file's name when its size and checksum are right. HF_HUB_DOWNLOAD_TIMEOUT in the
environment sets how many seconds without data end a try (10).
"""

import glob
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import http_backoff
from huggingface_hub.utils.sha import sha_fileobj
from rich.filesize import decimal

constants.DOWNLOAD_CHUNK_SIZE = 1 << 20  # what an interruption loses, at most
_HEADERS = {"User-Agent": "mmaction_mbcd", "Accept-Encoding": "identity"}


class DownloadError(Exception):
    """A file cannot be had. The message says why, and what would help."""


@dataclass(frozen=True)
class File:
    """A file, and what is done with it.

    Attributes:
        name: What messages call it.
        urls: Where it may be; the next one is tried when the server says 404.
        path: Where it goes.
        size: In bytes, if published.
        sha256: Published hexadecimal digits; the first ones will do.
        version: Changes with the content, if published; else the server is asked.
        token: Sent to the URL's own scheme, host and port only.
        done: Says, without the network, that there is nothing left to do.
        finish: Called when the file is there; may return a remark.
        folder: If ``finish`` unpacks the file, into which folder.
    """

    name: str
    urls: tuple[str, ...]
    path: Path
    size: int | None = None
    sha256: str = ""
    version: str = ""
    token: str | None = field(default=None, repr=False)
    done: Callable[[], bool] = lambda: False
    finish: Callable[[], str | None] = lambda: None
    folder: Path | None = None


def size_of(path: Path) -> int:
    """The bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def locate(file: File) -> tuple[str, int | None, str]:
    """Asks (HEAD) where a file is, its size in bytes, and what names its version.

    Raises:
        DownloadError: If no URL has the file.
    """
    if file.version:
        return file.urls[0], file.size, file.version
    for url in file.urls:
        answer = http_backoff("HEAD", url, headers=_HEADERS, timeout=30, max_retries=3)
        if answer.status_code != 404:
            break
    if answer.is_error:
        raise DownloadError(_refusal(" or ".join(file.urls), answer))
    headers = answer.headers
    if headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(f"{url} is a web page, not the file")
    size, version = headers.get("Content-Length"), headers.get("ETag")
    version = version or headers.get("Last-Modified") or ""
    return url, int(size) if size else None, version


def _refusal(url: str, answer: Any) -> str:
    text = f"{url}: {answer.status_code} {answer.reason_phrase}"
    if answer.status_code in (401, 403):
        text += ". Its terms may have to be accepted on its web page first"
    return text


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return sha_fileobj(file).hex()


def _fault(file: File, path: Path) -> str:
    """What is wrong with a complete file, or ``''``."""
    if file.size not in (None, size_of(path)):
        return f"it has {size_of(path)} bytes, but {file.size} are published"
    if file.sha256 and not (actual := digest(path)).startswith(file.sha256):
        return f"its sha256 is {actual}, but {file.sha256} is published"
    return ""


def fetch(file: File) -> bool:
    """Fetches a file, or the rest of it.

    A file that is there is kept if its size and checksum are the published ones (where
    none is published, its name says that it is complete), and is fetched again
    otherwise.

    Returns:
        bool: False if it was there.

    Raises:
        DownloadError: If it cannot be had, or is another file than published.
    """
    if file.path.is_file() and not _fault(file, file.path):
        return False
    url, size, version = locate(file)
    key = hashlib.sha256(f"{url} {size} {version}".encode()).hexdigest()[:8]
    part = file.path.with_name(f"{file.path.name}.{key}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    # What interrupted runs have left of it.
    for old in part.parent.glob(f"{glob.escape(file.path.name)}.*.part"):
        if old != part or not (size and version):
            old.unlink()
    _receive(file, url, part, size)
    if fault := _fault(file, part):
        part.unlink()
        raise DownloadError(f"{fault}. What came was deleted")
    os.replace(part, file.path)
    return True


def _receive(file: File, url: str, part: Path, size: int | None) -> None:
    """Brings the part to its full length."""
    bearer = {"Authorization": f"Bearer {file.token}"} if file.token else {}
    for wait in (1, 2, 4, 8, 0):
        have, free = size_of(part), shutil.disk_usage(part.parent).free
        if size and size - have > free:
            need = decimal(size - have)
            raise DownloadError(f"{need} are needed, but the disk has {decimal(free)}")
        try:
            with open(part, "ab") as target:
                http_get(
                    url,
                    target,
                    resume_size=have,
                    headers=_HEADERS | bearer,
                    expected_size=size,
                    displayed_filename=file.name,
                )
                target.flush()
                os.fsync(target.fileno())
            return
        except Exception as error:
            answer = getattr(error, "response", None)  # of HfHubHTTPError
            code = 0 if answer is None else answer.status_code
            if code == 416 or not 0 < size_of(part) <= (size or 0):
                part.unlink()  # it is not of this file
            if 400 <= code < 500 and code != 416:
                raise DownloadError(_refusal(url, answer)) from None
            if not wait or getattr(error, "errno", None):  # an errno is the disk's
                raise
            time.sleep(wait)
