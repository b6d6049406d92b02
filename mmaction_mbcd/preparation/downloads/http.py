"""One connection: redirects that keep a token at home, time limits, and new tries."""

import contextlib
import http.client
import re
import socket
import ssl
import string
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)

from .common import CHUNK, DownloadError, Monitor, Options

STALL_BYTES = 1024
"""A connection that brings less within the timeout is given up."""

PROGRESS_BYTES = 1 << 20
"""A try that brings the file forward by this much does not count as a failed one."""

MAX_WAIT = 120.0
"""Seconds between two tries, at most."""

MAX_REDIRECTS = 10

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")


class TransientError(Exception):
    """May go away; ``after`` is how long the server asks to wait, in seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class MissingError(Exception):
    """404 or 410: another of the file's URLs may have it."""


class RangeError(TransientError):
    """The server has no rest of the file, or another one's."""


def check_url(url: str) -> str:
    """Returns a URL that can be fetched.

    Raises:
        ValueError: If it is none of http or https, or names no host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL http://... or https://...")
    return url


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port."""
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


_TIMED = {
    kind: type(f"_Timed{kind.__name__}", (_Timed, kind), {})
    for kind in (http.client.HTTPConnection, http.client.HTTPSConnection)
}


class _TimedHandler(HTTPHandler, HTTPSHandler):
    def do_open(self, http_class, req, **kwargs):
        return super().do_open(_TIMED[http_class], req, **kwargs)


class _NoRedirects(HTTPRedirectHandler):
    """Leaves them to :func:`open_url`, which knows what a new host must not get."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


@lru_cache(maxsize=1)
def _opener() -> OpenerDirector:
    return build_opener(_TimedHandler, _NoRedirects)


def number(headers: Mapping[str, str], name: str) -> int | None:
    """The whole number in a header, if there is one."""
    value = (headers.get(name) or "").strip()
    return int(value) if re.fullmatch(r"\d{1,18}", value) else None


def _refusal(error: urllib.error.HTTPError, url: str) -> Exception:
    message = f"{url}: {error.code} {error.reason}"
    if error.code in (404, 410):
        return MissingError(message)
    if error.code == 416:
        return RangeError(message)
    if error.code in _RETRIED:
        return TransientError(message, number(error.headers, "Retry-After") or 0)
    if error.code in (401, 403):
        message += (
            ". The server wants to know who asks: the data may have to be requested, "
            "or its terms accepted, on its web page first"
        )
    return DownloadError(message)


def open_url(
    url: str,
    options: Options,
    headers: Mapping[str, str] | None = None,
    token: str | None = None,
    method: str = "GET",
) -> http.client.HTTPResponse:
    """Opens a URL and follows redirects.

    The token goes to the URL's own scheme, host and port only.

    Raises:
        MissingError: 404 or 410.
        TransientError: What may go away: no connection, no answer in time, 5xx ...
        DownloadError: What will not.
    """
    home, asked = origin(url), url
    for _ in range(MAX_REDIRECTS + 1):
        request = Request(url, headers=dict(headers or {}), method=method)
        request.add_header("User-Agent", "mmaction_mbcd")
        if token and origin(url) == home:
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
            raise TransientError(f"{url}: {_said(reason)}") from None
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


def pieces(
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
            raise TransientError(f"{url}: {_said(error)}") from None
        if not piece:
            return
        yield piece
        count += len(piece)
        if (span := time.monotonic() - start) > options.timeout:
            if count < STALL_BYTES:
                raise TransientError(f"{url}: {count} bytes in {span:.0f} s")
            start, count = time.monotonic(), 0


def persist(attempt: Callable[[], T], options: Options, monitor: Monitor) -> T:
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
        except TransientError as error:
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
