import csv
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import signal
import stat
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from mmaction_mbcd.datasets.epic_kitchens import EPICKitchensDataset
from mmaction_mbcd.datasets.epic_splits import EpicSegment, read_splits, write_csv
from mmaction_mbcd.preparation import download as lib
from mmaction_mbcd.preparation.download import (
    DamagedArchiveError,
    Download,
    DownloadError,
    Job,
    Monitor,
    Options,
    StoppedError,
    fetch,
    run,
    unpack,
)

ROOT = Path(__file__).parents[2]
SPLITS = (
    Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared" / "data" / "splits")
    / "epic"
)
MIB = 1 << 20
FAST = Options(backoff=0, quiet=True)


def load_tool(name):
    path = ROOT / "tools" / "data" / name / "download.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}_download", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


epic_tool, hac_tool, weights_tool = map(load_tool, ("epic", "hac", "weights"))


# --- a server that misbehaves as told -----------------------------------------


@dataclass
class File:
    """What a path serves. ``script`` has one word per GET, then all is well."""

    body: bytes = b""
    etag: str | None = '"v1"'
    modified: str | None = None
    ranges: bool = True
    headers: dict = field(default_factory=dict)
    script: list = field(default_factory=list)


Seen = namedtuple("Seen", "method path headers")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server.owner
        path = unquote(self.path)
        server.log.append(Seen(self.command, path, dict(self.headers)))
        file = server.files.get(path)
        if file is None:
            return self.send_error(404)
        word = file.script.pop(0) if file.script and self.command == "GET" else "ok"
        verb, _, rest = word.partition(" ")
        try:
            getattr(self, f"do_{verb}")(file, rest)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def head(self, file, status=200, start=0, length=True, **headers):
        self.send_response(status)
        if length:
            self.send_header("Content-Length", str(len(file.body) - start))
        names = {"ETag": file.etag, "Last-Modified": file.modified}
        for name, value in {**names, **file.headers, **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def start(self, file):
        """Where the asked range begins; 0 for all."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or not file.ranges:
            return 0
        known = self.headers.get("If-Range")
        fits = known in (None, file.etag, file.modified)
        return int(asked[1]) if fits else 0

    def begin(self, file):
        start = self.start(file)
        if start:
            size = len(file.body)
            span = f"bytes {start}-{size - 1}/{size}"
            self.head(file, 206, start, Content_Range=span)
        else:
            self.head(file)
        return start

    def do_ok(self, file, _):
        start = self.begin(file)
        if self.command == "GET":
            self.wfile.write(file.body[start:])

    def do_drop(self, file, count):
        start = self.begin(file)
        self.wfile.write(file.body[start : start + int(count)])

    def do_status(self, file, words):
        code, *headers = words.split(" ", 1)
        self.send_response(int(code))
        for header in headers:
            self.send_header(*header.split(": "))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_redirect(self, file, url):
        self.do_status(file, f"302 Location: {url}")

    def do_raw(self, file, what):
        """A 206 whose headers are wrong."""
        start = self.start(file)
        size, etag = len(file.body), file.etag
        spans = {
            "shifted": (f"bytes {start - 1}-{size - 1}/{size}", etag),
            "none": (None, etag),
            "grown": (f"bytes {start}-{size}/{size + 1}", etag),
            "changed": (f"bytes {start}-{size - 1}/{size}", '"v2"'),
        }
        span, tag = spans[what]
        self.head(file, 206, start, Content_Range=span, ETag=tag)
        self.wfile.write(file.body[start:])

    def do_stall(self, file, count):
        start = self.begin(file)
        self.wfile.write(file.body[start : start + int(count)])
        self.wfile.flush()
        self.server.owner.release.wait(20)

    def do_drip(self, file, _):
        self.begin(file)
        self._drip(file.body)

    def do_silent(self, file, _):
        self.server.owner.release.wait(20)

    def do_statusdrip(self, file, _):
        self._drip(b"HTTP/1.0 200 OK" + bytes(1000))

    def do_headerdrip(self, file, _):
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self._drip(b"X-Padding: " + bytes(1000))

    def _drip(self, text):
        for i in range(len(text)):
            self.wfile.write(text[i : i + 1])
            self.wfile.flush()
            if self.server.owner.release.wait(0.05):
                return

    def do_headercut(self, file, _):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text")

    def do_chunkcut(self, file, _):
        self.protocol_version = "HTTP/1.1"
        self.head(file, length=False, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n" % len(file.body) + file.body[: len(file.body) // 2])

    def do_nolength(self, file, _):
        self.head(file, length=False)
        self.wfile.write(file.body)

    def do_meet(self, file, _):
        """Answers when enough requests are here at once."""
        self.server.owner.barrier.wait(10)
        self.do_ok(file, _)


class Server:
    def __init__(self):
        self.files, self.log = {}, []
        self.release, self.barrier = threading.Event(), threading.Barrier(3)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self
        thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        thread.daemon = True
        thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def put(self, path, body=b"", **kwargs):
        self.files[path] = File(body, **kwargs)
        return self.url + path

    def ranges(self, path=None):
        """The ranges that were asked for, request by request."""
        return [s.headers.get("Range") for s in self.gets(path)]

    def gets(self, path=None):
        return [s for s in self.log if s.method == "GET" and path in (None, s.path)]

    def close(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries, which are not spent."""
    waits = []
    monkeypatch.setattr(Monitor, "wait", lambda self, seconds: waits.append(seconds))
    return waits


def data(size, seed=0):
    """Bytes of which no two stretches are alike."""
    blocks = (
        hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(size // 32 + 1)
    )
    return b"".join(blocks)[:size]


def one(url, path, **kwargs):
    urls = (url,) if isinstance(url, str) else tuple(url)
    return Download(urls, path, path.name, **kwargs)


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def sha(body, kind="sha256"):
    return hashlib.new(kind, body).hexdigest()


# --- one file -----------------------------------------------------------------


def test_whole_file(server, tmp_path):
    body = data(700_000)
    url = server.put("/a.bin", body)
    download = one(url, tmp_path / "deep" / "a.bin", size=700_000)
    monitor = Monitor()
    assert fetch(download, FAST, monitor) is True
    assert (monitor.received, monitor.best) == (700_000, 700_000)
    assert download.path.read_bytes() == body
    assert left(download.path.parent) == ["a.bin"]
    assert fetch(download, FAST) is False
    assert len(server.log) == 1 and server.ranges() == [None]


def test_empty_file(server, tmp_path):
    fetch(one(server.put("/a", b""), tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == b""


def test_dropped_connection_is_resumed(server, tmp_path):
    body = data(300_000)
    url = server.put("/a", body, script=["drop 100000", "drop 50000"])
    monitor = Monitor()
    fetch(one(url, tmp_path / "a"), FAST, monitor)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert [s.headers.get("If-Range") for s in server.log] == [None, '"v1"', '"v1"']
    # No byte came twice.
    assert monitor.received == 300_000


def test_next_run_resumes(server, tmp_path):
    body = data(300_000)
    url = server.put("/a", body, script=["drop 100000"])
    with pytest.raises(DownloadError, match="ended at 100000 of 300000 B.*1 tries"):
        fetch(one(url, tmp_path / "a"), Options(attempts=1))
    assert left(tmp_path) == ["a.part", "a.part.json"]
    assert (tmp_path / "a.part").read_bytes() == body[:100_000]
    note = json.loads((tmp_path / "a.part.json").read_text())
    assert note == dict(url=url, size=300_000, etag='"v1"', last_modified=None)
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges()[1:] == ["bytes=100000-"] and left(tmp_path) == ["a"]


def test_killed_before_the_rename(server, tmp_path):
    """A complete part needs no request."""
    body = data(1000)
    url = server.put("/a", body)
    (tmp_path / "a.part").write_bytes(body)
    note = dict(url=url, size=1000, etag='"v1"', last_modified=None)
    (tmp_path / "a.part.json").write_text(json.dumps(note))
    fetch(one(url, tmp_path / "a", checksum=f"sha256:{sha(body)}"), FAST)
    assert (tmp_path / "a").read_bytes() == body and server.log == []


@pytest.mark.parametrize(
    "note",
    ["", "{", "[]", r'{"url": "http://x/a", "size": 1000, "etag": "\"v1\""}'],
)
def test_part_without_a_good_note_is_not_trusted(server, tmp_path, note):
    body = data(1000)
    url = server.put("/a", body)
    (tmp_path / "a.part").write_bytes(b"x" * 500)
    (tmp_path / "a.part.json").write_text(note)
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body and server.ranges() == [None]


def test_part_that_is_too_long_is_not_trusted(server, tmp_path):
    body = data(1000)
    url = server.put("/a", body)
    (tmp_path / "a.part").write_bytes(body + b"x")
    note = dict(url=url, size=1000, etag='"v1"')
    (tmp_path / "a.part.json").write_text(json.dumps(note))
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body and server.ranges() == [None]


def test_server_without_ranges(server, tmp_path):
    body = data(300_000)
    url = server.put("/a", body, ranges=False, script=["drop 200000"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None, "bytes=200000-"]


@pytest.mark.parametrize("size", [150_000, 300_000, 400_000])
def test_changed_file_is_not_stitched(server, tmp_path, size):
    old, new = data(300_000), data(size, seed=1)
    url = server.put("/a", old, script=["drop 200000"])
    with pytest.raises(DownloadError):
        fetch(one(url, tmp_path / "a"), Options(attempts=1))
    server.put("/a", new, etag='"v2"')
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == new
    # If-Range: one request tells.
    assert len(server.log) == 2


@pytest.mark.parametrize("fault", ["shifted", "none", "grown", "changed"])
def test_wrong_rest_is_refused(server, tmp_path, fault):
    """A server that ignores If-Range, or answers another range."""
    body = data(300_000)
    url = server.put("/a", body, script=["drop 1000", f"raw {fault}"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None, "bytes=1000-", None]


def test_range_not_satisfiable(server, tmp_path):
    body = data(3000)
    url = server.put("/a", body, script=["drop 1000", "status 416"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None, "bytes=1000-", None]


@pytest.mark.parametrize(
    "etag, modified, sent",
    [
        ('"s"', "Mon, 01 Jan 2024 00:00:00 GMT", '"s"'),
        ('W/"w"', "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 GMT"),
        (None, "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ('W/"w"', None, None),
        (None, None, None),
    ],
)
def test_validator(server, tmp_path, etag, modified, sent):
    """A weak ETag does not vouch for bytes; without a validator it starts over."""
    body = data(3000)
    url = server.put("/a", body, etag=etag, modified=modified, script=["drop 1000"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.log[1].headers.get("If-Range") == sent
    assert server.ranges()[1] == ("bytes=1000-" if sent else None)


def test_resume_goes_to_the_url_that_has_it(server, tmp_path):
    body = data(3000)
    urls = [server.url + "/train/a", server.put("/test/a", body, script=["drop 1000"])]
    fetch(one(urls, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert [(s.path, s.headers.get("Range")) for s in server.log] == [
        ("/train/a", None),
        ("/test/a", None),
        ("/test/a", "bytes=1000-"),
    ]


def test_all_urls_missing(server, tmp_path):
    urls = [f"{server.url}/train/a", f"{server.url}/test/a"]
    with pytest.raises(DownloadError) as error:
        fetch(one(urls, tmp_path / "a"), FAST)
    assert str(error.value) == "; ".join(f"{url}: 404 Not Found" for url in urls)
    assert len(server.log) == 2 and left(tmp_path) == []


def test_errors_that_go_away(server, tmp_path, waits):
    script = ["status 500", "status 503", "status 429 Retry-After: 30", "headercut"]
    url = server.put("/a", b"abc", script=script)
    fetch(one(url, tmp_path / "a"), Options(attempts=5, backoff=1))
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert len(server.log) == 5 and waits == [1, 2, 30, 8]


def test_longest_wait(server, tmp_path, waits):
    url = server.put("/a", b"abc", script=["status 503 Retry-After: 9999"])
    fetch(one(url, tmp_path / "a"), Options())
    assert waits == [120]


def test_tries_are_limited(server, tmp_path, waits):
    url = server.put("/a", b"abc", script=["status 500"] * 9)
    with pytest.raises(DownloadError, match="500 Internal Server Error.*after 3 tries"):
        fetch(one(url, tmp_path / "a"), Options(attempts=3, backoff=0.5))
    assert len(server.log) == 3 and waits == [0.5, 1]


@pytest.mark.parametrize(
    "code, text",
    [
        (400, "400 Bad Request"),
        (401, "terms accepted"),
        (403, "terms accepted"),
        (501, "501"),
    ],
)
def test_errors_that_do_not_go_away(server, tmp_path, code, text):
    url = server.put("/a", b"abc", script=[f"status {code}"])
    with pytest.raises(DownloadError, match=text):
        fetch(one(url, tmp_path / "a"), FAST)
    assert len(server.log) == 1


def test_connection_refused(server, tmp_path, waits):
    server.close()
    with pytest.raises(DownloadError, match="refused.*after 2 tries"):
        fetch(one(server.url + "/a", tmp_path / "a"), Options(attempts=2))
    assert waits == [1]


def test_tries_that_bring_something_do_not_count(server, tmp_path, waits):
    body = data(5 * MIB)
    url = server.put("/a", body, script=[f"drop {MIB}"] * 4)
    fetch(one(url, tmp_path / "a"), Options(attempts=2))
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None] + [f"bytes={i * MIB}-" for i in (1, 2, 3, 4)]
    assert waits == [1, 1, 1, 1]


def test_coming_only_so_far_does_count(server, tmp_path, waits):
    """Else a server without ranges that always breaks off would be asked for ever."""
    url = server.put("/a", data(3 * MIB), ranges=False, script=[f"drop {2 * MIB}"] * 9)
    with pytest.raises(DownloadError, match="after 3 tries"):
        fetch(one(url, tmp_path / "a"), Options(attempts=3))
    assert len(server.log) == 3


@pytest.mark.parametrize(
    "word, text",
    [
        ("stall 5000", "no answer in time"),
        ("silent", "no answer in time"),
        ("statusdrip", "no answer in time"),
        ("headerdrip", "no answer in time"),
        ("drip", r"\d+ bytes in 0 s"),
    ],
)
def test_nothing_hangs(server, tmp_path, word, text):
    url = server.put("/a", data(10_000), script=[word])
    start = time.monotonic()
    with pytest.raises(DownloadError, match=text):
        fetch(one(url, tmp_path / "a"), Options(attempts=1, timeout=0.25))
    assert 0.2 < time.monotonic() - start < 2
    server.release.set()
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == data(10_000)
    if word.startswith("stall"):
        assert server.ranges() == [None, "bytes=5000-"]


def test_cut_chunks(server, tmp_path):
    body = data(1000)
    url = server.put("/a", body, script=["chunkcut"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body and len(server.log) == 2


@pytest.mark.parametrize("size", [None, 1000])
def test_unknown_length(server, tmp_path, size):
    body = data(1000)
    url = server.put("/a", body, script=["nolength"])
    fetch(one(url, tmp_path / "a", size=size), FAST)
    assert (tmp_path / "a").read_bytes() == body and len(server.log) == 1


def test_published_size_replaces_a_missing_length(server, tmp_path):
    """What ends early is then seen to."""
    url = server.put("/a", data(900), script=["nolength"])
    server.files["/a"].script.append("status 400")
    with pytest.raises(DownloadError, match="400"):
        fetch(one(url, tmp_path / "a", size=1000), FAST)
    assert len(server.log) == 2


def test_other_size_than_published(server, tmp_path):
    url = server.put("/a", data(900))
    with pytest.raises(DownloadError, match="900 bytes, but 1000 are published"):
        fetch(one(url, tmp_path / "a", size=1000), FAST)
    assert len(server.log) == 1 and left(tmp_path) == []


@pytest.mark.parametrize("kind, digits", [("sha256", 64), ("sha256", 8), ("md5", 32)])
def test_checksum(server, tmp_path, kind, digits):
    good, bad = data(1000), data(1000, seed=1)
    published = sha(good, kind)[:digits]
    download = one(
        server.put("/a", bad), tmp_path / "a", checksum=f"{kind}:{published}"
    )
    with pytest.raises(DownloadError) as error:
        fetch(download, FAST)
    assert f"its {kind} is {sha(bad, kind)}, but {published} is" in str(error.value)
    assert left(tmp_path) == [] and len(server.log) == 1
    server.put("/a", good)
    assert fetch(download, FAST) is True
    assert download.path.read_bytes() == good
    assert fetch(download, FAST) is False


@pytest.mark.parametrize("known", ["size", "checksum"])
def test_damaged_file_is_fetched_again(server, tmp_path, known):
    body = data(1000)
    what = dict(size=dict(size=1000), checksum=dict(checksum=f"sha256:{sha(body)}"))
    download = one(server.put("/a", body), tmp_path / "a", **what[known])
    download.path.write_bytes(body[:-1])
    assert fetch(download, FAST) is True
    assert download.path.read_bytes() == body


def test_malformed_downloads(tmp_path):
    for url in ("file:///etc/passwd", "ftp://x/y", "data/epic", "http:///a", ""):
        with pytest.raises(ValueError, match="is no URL http"):
            one(url, tmp_path / "a")
    for checksum in ("crc:12", "sha256:", "sha256:XY", "12ab"):
        with pytest.raises(ValueError, match="sha256:<hex> or md5:<hex>, got"):
            one("http://x/a", tmp_path / "a", checksum=checksum)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(workers=0), "workers must be at least 1, got 0"),
        (dict(attempts=0), "attempts must be at least 1, got 0"),
        (dict(backoff=-1), "backoff must be at least 0, got -1"),
        (dict(timeout=0), "timeout must be positive, got 0"),
        (dict(timeout=float("nan")), "timeout must be positive, got nan"),
    ],
)
def test_options(change, text):
    with pytest.raises(ValueError, match=text):
        Options(**change)


# --- redirects ----------------------------------------------------------------


def bearer(server):
    return [s.headers.get("Authorization") for s in server.log]


def test_token_stays_at_home(server, other, tmp_path):
    body = data(3000)
    there = other.put("/blob", body, script=["drop 1000"])
    script = [f"redirect {there}"] * 2
    url = server.put("/a", script=script)
    fetch(one(url, tmp_path / "a", token="secret"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert bearer(server) == ["Bearer secret"] * 2
    assert bearer(other) == [None] * 2
    # What the other server calls the file is what it is asked for.
    assert other.ranges() == [None, "bytes=1000-"]
    assert other.log[1].headers["If-Range"] == '"v1"'


def test_token_on_the_way(server, other, tmp_path):
    """Sent on a redirect within the host, and again after a detour."""
    server.put("/end", b"abc")
    detour = other.put("/x", script=[f"redirect {server.url}/end"])
    server.put("/b", script=[f"redirect {detour}"])
    url = server.put("/a", script=["redirect /b"])
    fetch(one(url, tmp_path / "a", token="secret"), FAST)
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert [s.path for s in server.log] == ["/a", "/b", "/end"]
    assert bearer(server) == ["Bearer secret"] * 3 and bearer(other) == [None]


def test_token_is_not_shown(tmp_path):
    assert "secret" not in repr(one("http://x/a", tmp_path / "a", token="secret"))


def test_endless_redirects(server, tmp_path):
    url = server.put("/a", script=["redirect /a"] * 99)
    with pytest.raises(DownloadError, match="more than 10 redirects"):
        fetch(one(url, tmp_path / "a"), FAST)
    assert len(server.log) == 11


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_redirect_to_another_kind(server, tmp_path, target):
    url = server.put("/a", script=[f"redirect {target}"])
    with pytest.raises(DownloadError, match="redirects to .* which is refused"):
        fetch(one(url, tmp_path / "a"), FAST)
    assert left(tmp_path) == []


def test_redirect_to_nowhere(server, tmp_path):
    url = server.put("/a", script=["status 302"])
    with pytest.raises(DownloadError, match="redirects to nowhere"):
        fetch(one(url, tmp_path / "a"), FAST)


def test_redirect_with_spaces(server, tmp_path):
    server.put("/drinking 54 é.mp4", b"abc")
    url = server.put("/a", script=["redirect /drinking%2054 %C3%A9.mp4"])
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_sizes(server, other, tmp_path):
    url = server.put("/a", data(1234))
    urls = (server.url + "/none", url)
    assert lib.remote_size(one(urls, tmp_path / "a"), FAST, Monitor()) == 1234
    assert [s.method for s in server.log] == ["HEAD", "HEAD"]
    assert lib.remote_size(one(url, tmp_path / "a", size=7), FAST, Monitor()) == 7
    with pytest.raises(DownloadError, match="/none: 404"):
        lib.remote_size(one(urls[0], tmp_path / "a"), FAST, Monitor())


# --- the disk -----------------------------------------------------------------


def test_two_processes(server, tmp_path):
    download = one(server.put("/a", b"abc"), tmp_path / "a")
    with lib._alone(download.path):
        with pytest.raises(DownloadError, match=f"another process.*{tmp_path}/a"):
            fetch(download, FAST)
        assert server.log == []
    fetch(download, FAST)
    assert left(tmp_path) == ["a"]


def test_lock_that_a_kill_left(server, tmp_path):
    (tmp_path / "a.lock").touch()
    fetch(one(server.put("/a", b"abc"), tmp_path / "a"), FAST)
    assert left(tmp_path) == ["a"]


def free(monkeypatch, size):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(lib.shutil, "disk_usage", lambda path: Usage(size))


def test_no_room_for_one_file(server, tmp_path, monkeypatch):
    free(monkeypatch, 999)
    url = server.put("/a", data(1000))
    with pytest.raises(DownloadError, match="1.0 kB more are needed .* has 999 bytes"):
        fetch(one(url, tmp_path / "a"), FAST)
    free(monkeypatch, 1000)
    fetch(one(url, tmp_path / "a"), FAST)


def test_rooms_add_up(tmp_path, monkeypatch):
    free(monkeypatch, 1000)
    siblings = []
    for size, position in ((600, 100), (500, 0)):
        siblings.append(Monitor(siblings=siblings))
        siblings[-1].begin("fetching", size, position)
    siblings[0].check_room(tmp_path)
    siblings.append(Monitor(siblings=siblings))
    siblings[2].begin("unpacking", 1)
    with pytest.raises(DownloadError, match=r"1.0 kB more"):
        siblings[2].check_room(tmp_path)


def test_no_room_for_all(server, tmp_path, monkeypatch):
    """300 for plain files, 800 out of the archives, 500 for the largest of them."""
    sizes = [100, 200]
    jobs = [
        Job(one(server.put(f"/{n}", data(n)), tmp_path / str(n), size=n)) for n in sizes
    ]
    for n in (300, 500):
        download = one(server.put(f"/{n}", data(n)), tmp_path / str(n), size=n)
        jobs.append(Job(download, archive=tmp_path))
    options = Options(workers=1, quiet=True)
    assert lib.needed(jobs, options) == 1600
    assert lib.needed(jobs, Options(keep_archives=True)) == 1900
    free(monkeypatch, 1599)
    with pytest.raises(DownloadError, match="about 1.6 kB are needed"):
        run(jobs, options)
    assert server.log == []
    (tmp_path / "200.part").write_bytes(b"x" * 150)
    assert lib.needed(jobs, options) == 1450


def test_disk_that_fills_up(server, tmp_path):
    url = server.put("/a", data(5000))
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left on device. Make room"):
        fetch(one(url, tmp_path / "a"), FAST)
    assert len(server.log) == 1


# --- many files ---------------------------------------------------------------


def jobs_for(server, folder, **files):
    for name, body in files.items():
        server.put(f"/{name}", body)
    return [Job(one(f"{server.url}/{name}", folder / name)) for name in files]


def states(outcomes):
    return [(o.name, o.state) for o in outcomes]


def test_files_come_at_the_same_time(server, tmp_path):
    """The server answers when three requests are there."""
    jobs = jobs_for(server, tmp_path, a=b"1", b=b"22", c=b"333")
    for file in server.files.values():
        file.script = ["meet"]
    outcomes = run(jobs, Options(workers=3, quiet=True))
    assert states(outcomes) == [("a", "fetched"), ("b", "fetched"), ("c", "fetched")]
    assert [o.received for o in outcomes] == [1, 2, 3]
    assert not server.barrier.broken


def test_failures_are_named(server, tmp_path, capsys):
    def broken(monitor):
        raise KeyError("oops")

    jobs = jobs_for(server, tmp_path, a=b"1", b=b"2", c=b"3", d=b"4")
    server.files["/b"].script = ["status 400"]
    jobs[2] = Job(jobs[2].download, broken)
    (tmp_path / "d").write_bytes(b"4")
    jobs.append(Job(jobs[0].download.__class__(("http://x/e",), tmp_path / "e", "e")))
    jobs[-1] = Job(jobs[-1].download, done=lambda: "as it was")
    outcomes = run(jobs, Options(workers=2, quiet=True))
    assert states(outcomes) == [
        ("a", "fetched"),
        ("b", "failed"),
        ("c", "failed"),
        ("d", "there"),
        ("e", "there"),
    ]
    assert lib.report(outcomes, 12) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "5 files: 1 fetched (2 bytes in 12 s), 2 there already, 2 failed",
        "e: as it was",
    ]
    assert err.splitlines() == [
        f"failed: b: {server.url}/b: 400 Bad Request",
        "failed: c: KeyError: 'oops'",
    ]
    assert lib.report(outcomes[:1] + outcomes[3:], 1) == 0


def test_local_errors_are_named(server, tmp_path):
    (tmp_path / "file").touch()
    outcomes = run(jobs_for(server, tmp_path / "x", a=b"1"), FAST)
    assert states(outcomes) == [("a", "fetched")]
    (tmp_path / "x" / "b").mkdir()
    (outcome,) = run(jobs_for(server, tmp_path / "x", b=b"1"), FAST)
    assert outcome.state == "failed" and "x/b" in outcome.text


def test_one_path_twice(server, tmp_path):
    jobs = jobs_for(server, tmp_path, a=b"1")
    with pytest.raises(ValueError, match=f"2 downloads would write {tmp_path}/a"):
        run(jobs * 2, FAST)
    assert run([], FAST) == []


def shown(server, tmp_path, terminal, sizes=(None, None)):
    jobs = jobs_for(server, tmp_path, alpha=data(5000), beta=b"2")
    jobs = [
        Job(replace(job.download, size=size))
        for job, size in zip(jobs, sizes, strict=True)
    ]
    server.files["/alpha"].script = ["stall 3000"]
    server.files["/beta"].script = ["status 400"]
    threading.Timer(0.5, server.release.set).start()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    run(jobs, Options(backoff=0), console)
    return console.file.getvalue()


def test_progress_on_a_terminal(server, tmp_path):
    text = shown(server, tmp_path, True)
    assert "1/2 files" in text and "fetching alpha" in text and "3.0/5.0 kB" in text
    assert "[1/2] beta: failed (" in text


def test_progress_of_known_sizes(server, tmp_path):
    """3000 bytes of alpha, and beta, which has failed and so is over."""
    text = shown(server, tmp_path, True, (5000, 1))
    line = re.findall("1/2 files[^\n]*", text)[-1]
    assert "3.0/5.0 kB" in line


def test_progress_elsewhere(server, tmp_path):
    assert shown(server, tmp_path, False).splitlines() == [
        f"[1/2] beta: failed ({server.url}/beta: 400 Bad Request)",
        "[2/2] alpha: fetched",
    ]


def child(url, path):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = Options(quiet=True)

    def command():
        return lib.report(run([Job(one(url, path))], options), 0)

    os._exit(lib.exit_code(command))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 1), (signal.SIGKILL, -9)])
def test_stop_and_go_on(server, tmp_path, number, code):
    """Ctrl-C ends a stalled download at once, a kill does no harm."""
    body = data(500_000)
    url = server.put("/a", body, script=["stall 400000"])
    process = multiprocessing.get_context("fork").Process(
        target=child, args=(url, tmp_path / "a")
    )
    process.start()
    part, end = tmp_path / "a.part", time.monotonic() + 10
    while not part.exists() or part.stat().st_size < 400_000:
        assert time.monotonic() < end
        time.sleep(0.01)
    start = time.monotonic()
    os.kill(process.pid, number)
    process.join(10)
    assert time.monotonic() - start < 3 and process.exitcode == code
    assert left(tmp_path) == ["a.lock", "a.part", "a.part.json"]
    fetch(one(url, tmp_path / "a"), FAST)
    assert (tmp_path / "a").read_bytes() == body
    assert server.ranges() == [None, "bytes=400000-"] and left(tmp_path) == ["a"]


def test_stop_is_seen_everywhere(server, tmp_path):
    """In a wait, in a transfer, in a checksum and in an archive."""
    stop = threading.Event()
    stop.set()
    url = server.put("/a", b"abc", script=["status 500"])
    for action in (
        lambda m: fetch(one(url, tmp_path / "a"), FAST, m),
        lambda m: m.wait(60),
        lambda m: lib.digest(tmp_path / "b", monitor=m),
        lambda m: unpack(tmp_path / "c.zip", tmp_path / "d", monitor=m),
    ):
        (tmp_path / "b").write_bytes(b"x")
        make_zip(tmp_path / "c.zip", x=b"y")
        with pytest.raises(StoppedError):
            action(Monitor(stop=stop))
    assert server.log == [] and left(tmp_path / "d") == []


def test_report_of_a_stop(capsys):
    outcomes = [lib.Outcome(str(i), "stopped") for i in range(7)]
    assert lib.report(outcomes, 3) == 1
    out, err = capsys.readouterr()
    assert out == "7 files: 0 fetched (0 bytes in 3 s), 7 stopped\n"
    assert err == "stopped: 0, 1, 2, 3, 4 and 2 more; run it again to go on\n"


# --- archives -----------------------------------------------------------------


def make_tar(path, *members, mode="w", **files):
    """Members are TarInfo; files a name and its bytes."""
    with tarfile.open(path, mode) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def make_zip(path, *members, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
        for info in members:
            archive.writestr(info, b"x")
    return path


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


CONTENT = {"a/b.txt": b"1" * 9, "./c d.bin": data(3000), "e": b""}
TREE = {"a/b.txt": b"1" * 9, "c d.bin": data(3000), "e": b""}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.zip"])
def test_unpack(tmp_path, name):
    path = tmp_path / name
    if name == "x.zip":
        make_zip(path, **CONTENT)
    else:
        mode = {"gz": "w:gz", "gz2": "w:gz", "xz": "w:xz", "tgz": "w:gz"}
        make_tar(path, mode=mode.get(name.rpartition(".")[2], "w"), **CONTENT)
    result = unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == TREE
    assert sorted(result.names) == sorted(TREE)
    assert (result.size, result.left) == (3009, [])


def info(name, kind=tarfile.REGTYPE, target="", size=0):
    result = tarfile.TarInfo(name)
    result.type, result.linkname, result.size = kind, target, size
    return result


@pytest.mark.parametrize(
    "members",
    [
        [info("../evil", size=1)],
        [info("a/../../evil", size=1)],
        [info("{}/evil", size=1)],
        [info("..\\evil", size=1)],
        [info("link", tarfile.SYMTYPE, ".."), info("link/evil", size=1)],
        [info("link", tarfile.SYMTYPE, "{}"), info("link/evil", size=1)],
        [info("link", tarfile.SYMTYPE, "{}/secret")],
        [info("link", tarfile.SYMTYPE, "../secret")],
        [info("link", tarfile.LNKTYPE, "{}/secret")],
        [info("link", tarfile.LNKTYPE, "../secret")],
        [info("link", tarfile.SYMTYPE, "nothing")],
        [info("link", tarfile.SYMTYPE, "link")],
        [info("pipe", tarfile.FIFOTYPE)],
        [info("disk", tarfile.BLKTYPE)],
        [info("tty", tarfile.CHRTYPE)],
        [info("new\nline", size=1)],
    ],
)
def test_malicious_tar(tmp_path, members):
    out = tmp_path / "out"
    (tmp_path / "secret").write_text("secret")
    for member in members:
        member.name = member.name.format(tmp_path)
        member.linkname = member.linkname.format(tmp_path)
    make_tar(tmp_path / "x.tar", *members, good=b"1")
    with pytest.raises(DownloadError, match="refused"):
        unpack(tmp_path / "x.tar", out)
    assert left(tmp_path) == ["out", "secret", "x.tar"]
    assert (tmp_path / "secret").read_text() == "secret"
    assert tree(out) == {"good": b"1"}
    assert not any(p.is_symlink() for p in out.iterdir())


def test_link_inside_a_tar_becomes_a_copy(tmp_path):
    links = [info("b", tarfile.SYMTYPE, "a"), info("c", tarfile.LNKTYPE, "a")]
    make_tar(tmp_path / "x.tar", *links, a=b"123")
    unpack(tmp_path / "x.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == dict(a=b"123", b=b"123", c=b"123")


def zip_info(name, mode=0, flag=0):
    result = zipfile.ZipInfo(name)
    result.external_attr = mode << 16
    result.flag_bits |= flag
    return result


@pytest.mark.parametrize(
    "member, text",
    [
        (zip_info("../evil"), "leads out of its folder"),
        (zip_info("a/../../evil"), "leads out of its folder"),
        (zip_info("/evil"), "leads out of its folder"),
        (zip_info("..\\evil"), "leads out of its folder"),
        (zip_info("\\evil"), "leads out of its folder"),
        (zip_info("C:\\evil"), "leads out of its folder"),
        (zip_info("link", stat.S_IFLNK | 0o777), "has the link 'link'"),
    ],
)
def test_malicious_zip(tmp_path, member, text):
    make_zip(tmp_path / "x.zip", member, good=b"1")
    with pytest.raises(DownloadError, match=f"{text}.*refused"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert left(tmp_path) == ["out", "x.zip"]
    assert tree(tmp_path / "out") == {"good": b"1"}


def test_locked_zip(tmp_path):
    path = make_zip(tmp_path / "x.zip", a=b"1")
    content = bytearray(path.read_bytes())
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.index(start) + (6 if start[2] == 3 else 8)] |= 1
    path.write_bytes(content)
    with pytest.raises(DownloadError, match="x.zip needs a password"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_damaged_archive(tmp_path, name, keep):
    path = tmp_path / name
    test_unpack(tmp_path, name)
    path.write_bytes(path.read_bytes()[: int(keep * 3000)])
    with pytest.raises(DamagedArchiveError, match=f"{name} is no complete tar or zip"):
        unpack(path, tmp_path / "again")
    # No half file under a final name.
    assert tree(tmp_path / "again").items() <= TREE.items()


def test_wrong_bytes_in_a_zip(tmp_path):
    path = make_zip(tmp_path / "x.zip", a=b"0123456789" * 9)
    content = bytearray(path.read_bytes())
    content[33] ^= 255
    path.write_bytes(content)
    with pytest.raises(DamagedArchiveError):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_one_place_for_two_members(tmp_path):
    make_zip(tmp_path / "x.zip", **{"a/f": b"1", "b/f": b"2"})
    with pytest.raises(DownloadError, match="'a/f' and 'b/f' for the same place 'f'"):
        unpack(tmp_path / "x.zip", tmp_path / "out", lambda name: name[-1])


def test_no_room_for_a_member(tmp_path, monkeypatch):
    make_zip(tmp_path / "x.zip", a=bytes(5000))
    free(monkeypatch, 4999)
    with pytest.raises(DownloadError, match="needs 5.0 kB, but .* has 5.0 kB free"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["", ".", "./", "a/..", "/", "\\\\x\\y", "a\0b"])
def test_unsafe_name(name):
    with pytest.raises(DownloadError, match="refused"):
        lib.safe_name(name)


@pytest.mark.parametrize(
    "name, safe",
    [("a//b/./c", "a/b/c"), ("./...", "..."), ("a\\b", "a/b"), ("x..y", "x..y")],
)
def test_safe_name(name, safe):
    assert lib.safe_name(name) == safe


# --- EPIC-Kitchens ------------------------------------------------------------


def test_published_videos():
    if not SPLITS.is_dir():
        pytest.skip(f"the real split files are not in {SPLITS} (set MBCD_SPLITS)")
    videos = lib.epic_videos(read_splits(str(SPLITS)))
    counts = {d: [v for v in videos if v.domain == d] for d in ("D1", "D2", "D3")}
    assert {d: len(v) for d, v in counts.items()} == dict(D1=28, D2=19, D3=17)
    train = {d: sum(v.splits == ("train",) for v in vs) for d, vs in counts.items()}
    test = {d: sum(v.splits == ("test",) for v in vs) for d, vs in counts.items()}
    # No video is used by both splits.
    assert train == dict(D1=22, D2=14, D3=13) and test == dict(D1=6, D2=5, D3=4)
    assert counts["D1"][0] == lib.EpicVideo("D1", "P08_01", ("train",))
    assert {v.video[:3] for v in counts["D3"]} == {"P22"}
    jobs = lib.epic_jobs(Path("epic"), videos)
    assert len(jobs) == 128 and len({j.download.path for j in jobs}) == 128
    base = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d/frames_rgb_flow"
    last = jobs[-1]
    assert last.download.urls == (
        f"{base}/flow/train/P22/P22_17.tar",
        f"{base}/flow/test/P22/P22_17.tar",
    )
    assert last.download.path == Path("epic/archives/flow/P22_17.tar")
    assert last.archive == Path("epic/flow/train/D3/P22_17")


def segment(uid, video, start=2):
    return EpicSegment(
        uid=uid,
        participant_id=video[:3],
        video_id=video,
        narration="open door",
        start_timestamp="00:00:01.00",
        stop_timestamp="00:00:02.00",
        start_frame=start,
        stop_frame=start + 4,
        verb="open",
        verb_class=2,
    )


@pytest.fixture
def splits(tmp_path):
    """P08_02 is used by both splits."""
    folder = tmp_path / "splits"
    folder.mkdir()
    videos = dict(
        D1_train=["P08_01", "P08_02"],
        D1_test=["P08_02", "P08_03"],
        D2_train=["P01_01"],
        D2_test=["P01_02"],
        D3_train=["P22_01"],
        D3_test=["P22_02"],
    )
    uid = 0
    for name, used in videos.items():
        rows = []
        for video in used:
            uid += 1
            rows.append(segment(uid, video))
        write_csv(rows, str(folder / f"{name}.csv"))
    return folder


def frame(i):
    return f"frame_{i:010d}.jpg"


def rgb_tar(video, style="./"):
    names = {f"{style}{frame(i)}": f"{video} rgb {i}".encode() for i in range(1, 8)}
    return tar_bytes(names)


def flow_tar(video, style=""):
    return tar_bytes(
        {
            f"{style}{side}/{frame(i)}": f"{video} {side} {i}".encode()
            for side in "uv"
            for i in range(1, 5)
        }
    )


def tar_bytes(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


@pytest.fixture
def epic(server):
    """The D1 videos; P08_03 is in the official test folder."""
    folders = dict(P08_01="train", P08_02="train", P08_03="test")
    for video, folder in folders.items():
        style = dict(P08_01="./", P08_02="", P08_03="home/P08_03/")[video]
        place = f"{folder}/P08/{video}.tar"
        server.put(f"/e/rgb/{place}", rgb_tar(video, style))
        server.put(f"/e/flow/{place}", flow_tar(video, style))
    return server


def epic_main(server, root, splits, *more):
    arguments = [root, "--splits", splits, "--base-url", f"{server.url}/e/", "--quiet"]
    return epic_tool.main([*map(str, arguments), "--domains", "D1", *more])


def test_epic(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    assert epic_main(epic, root, splits) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 files: 6 fetched (")
    expected = {}
    for place in ("train/D1/P08_01", "train/D1/P08_02", "test/D1/P08_03"):
        video = place[-6:]
        for i in range(1, 8):
            expected[f"rgb/{place}/{frame(i)}"] = f"{video} rgb {i}".encode()
        for side in "uv":
            for i in range(1, 5):
                name = f"flow/{place}/{side}/{frame(i)}"
                expected[name] = f"{video} {side} {i}".encode()
    found = tree(root)
    markers = {name for name in found if name.endswith(".unpacked.json")}
    assert {n: b for n, b in found.items() if n not in markers} == expected
    marker = json.loads((root / "flow/train/D1/P08_01/.unpacked.json").read_text())
    size = len(flow_tar("P08_01", "./"))
    assert marker == dict(archive="P08_01.tar", size=size, files=8, bytes=8 * 10)
    # The archives are gone; the second place is a relative link.
    assert left(root / "archives" / "rgb") == []
    for part in ("rgb", "flow"):
        link = root / part / "test" / "D1" / "P08_02"
        assert os.readlink(link) == "../../train/D1/P08_02"
        assert link.is_dir()
    # Official train first, then test.
    paths = [s.path for s in epic.log if "rgb" in s.path and "P08_03" in s.path]
    assert paths == ["/e/rgb/train/P08/P08_03.tar", "/e/rgb/test/P08/P08_03.tar"]
    # Nothing is fetched twice.
    epic.log.clear()
    assert epic_main(epic, root, splits) == 0
    assert epic.log == []
    assert capsys.readouterr().out.endswith(", 6 there already\n")


def test_epic_is_what_the_dataset_reads(epic, splits, tmp_path):
    root = tmp_path / "epic"
    root.mkdir()
    splits.rename(root / "MM-SADA_Domain_Adaptation_Splits")
    arguments = ["--base-url", f"{epic.url}/e", "--quiet", "--domains", "D1"]
    assert epic_tool.main([str(root), *arguments]) == 0
    dataset = EPICKitchensDataset(
        data_root=str(root),
        pipelines=dict(video=[], flow=[]),
        target="D1",
        use="test",
        lazy_init=True,
    )
    rows = [row for split in ("train", "test") for row in dataset.rows("D1", split)]
    assert len(rows) == 4
    for row in rows:
        video = Path(row["files"]["video"])
        assert (video / frame(2)).read_bytes() == f"{video.name} rgb 2".encode()
        u, v = map(Path, row["files"]["flow"])
        assert (u / frame(1)).read_bytes() == f"{video.name} u 1".encode()
        assert (v / frame(1)).read_bytes() == f"{video.name} v 1".encode()


def test_epic_dry_run(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    assert epic_main(epic, root, splits, "--parts", "rgb", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    base = f"{epic.url}/e/rgb"
    assert lines[2] == (
        f"{base}/train/P08/P08_03.tar or {base}/test/P08/P08_03.tar -> "
        f"{root}/archives/rgb/P08_03.tar -> {root}/rgb/test/D1/P08_03"
    )
    assert lines[3].startswith("dry run: 3 files, 0 bytes, 3 of unknown size; nothing")
    assert epic.log == [] and not root.exists()
    del epic.files["/e/rgb/train/P08/P08_01.tar"]
    more = ["--parts", "rgb", "--dry-run", "--sizes"]
    assert epic_main(epic, root, splits, *more) == 1
    out, err = capsys.readouterr()
    total = len(rgb_tar("P08_02", "")) + len(rgb_tar("P08_03", "home/P08_03/"))
    assert f"3 files, {total / 1000:.1f} kB, 1 of unknown size" in out
    assert err.startswith("failed: rgb/P08_01.tar: http") and err.count("404") == 2
    assert {s.method for s in epic.log} == {"HEAD"} and not root.exists()


def test_epic_keep_archives_and_the_resumption(epic, splits, tmp_path):
    root = tmp_path / "epic"
    path = "/e/rgb/train/P08/P08_01.tar"
    epic.files[path].script = ["drop 4000"]
    more = ["--parts", "rgb", "--keep-archives", "--attempts", "1"]
    assert epic_main(epic, root, splits, *more) == 1
    assert not (root / "rgb/train/D1/P08_01").exists()
    assert epic_main(epic, root, splits, *more) == 0
    assert epic.ranges(path) == [None, "bytes=4000-"]
    kept = root / "archives/rgb/P08_01.tar"
    assert kept.read_bytes() == rgb_tar("P08_01", "./")
    assert len(list((root / "rgb/train/D1/P08_01").glob("frame_*.jpg"))) == 7


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_epic_killed_while_unpacking(tmp_path, count, monkeypatch):
    """There is no folder until it is whole, and the next run does it again."""
    (tmp_path / "P08_01.tar").write_bytes(flow_tar("P08_01"))
    folder = tmp_path / "flow" / "P08_01"
    arguments = ("flow", folder, tmp_path / "P08_01.tar", Monitor())
    done, copy = [], lib._copy

    def killed(*args):
        if len(done) == count:
            raise StoppedError
        done.append(copy(*args))
        return done[-1]

    def unmarked(*args):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(lib, "_copy", killed)
        patch.setattr(lib, "_mark", unmarked)
        with pytest.raises(StoppedError):
            lib._epic_finish(*arguments)
    assert len(done) == count and left(folder.parent) == [".P08_01.part"]
    (folder.parent / ".P08_01.part" / "rest").touch()
    assert lib._epic_done("flow", folder) is None
    assert lib._epic_finish(*arguments) == ""
    assert left(folder.parent) == ["P08_01"]
    assert left(folder) == [".unpacked.json", "u", "v"]
    assert lib._epic_done("flow", folder) == ""


@pytest.mark.parametrize(
    "part, files, text",
    [
        ("rgb", {"readme.txt": b"1"}, "has no frame_*.jpg; of its 1 files the first"),
        ("flow", {frame(1): b"1"}, "has no frame_*.jpg in u/ and v/"),
        ("flow", {f"u/{frame(1)}": b"1"}, "has no frame_*.jpg in u/ and v/"),
        ("rgb", None, "is no complete tar or zip archive"),
    ],
)
def test_epic_tar_without_frames(epic, splits, tmp_path, capsys, part, files, text):
    """It is not kept, so the next run can get a better one."""
    root, path = tmp_path / "epic", f"/e/{part}/train/P08/P08_01.tar"
    good = epic.files[path].body
    page = b"<!DOCTYPE html><p>please log in</p>" * 99
    epic.files[path].body = page if files is None else tar_bytes(files)
    assert epic_main(epic, root, splits, "--parts", part) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"failed: {part}/P08_01.tar: ") and text in err
    assert "It was deleted: run it again" in err
    assert left(root / part / "train/D1") == ["P08_02"] or files is None
    assert left(root / "archives" / part) == []
    epic.files[path] = File(good, etag='"v2"')
    assert epic_main(epic, root, splits, "--parts", part) == 0


def test_epic_unequal_flow(tmp_path):
    archive = tmp_path / "x.tar"
    archive.write_bytes(
        tar_bytes({f"u/{frame(1)}": b"", f"u/{frame(2)}": b"", f"v/{frame(1)}": b""})
    )
    remark = lib._epic_finish("flow", tmp_path / "P08_01", archive, Monitor())
    assert remark == "u and v have 2/1 frames"


@pytest.mark.parametrize(
    "part, name, place",
    [
        ("rgb", "frame_0000000001.jpg", frame(1)),
        ("rgb", "./x/y/frame_12.jpg", frame(12)),
        ("rgb", "._frame_0000000001.jpg", None),
        ("rgb", "frame_0000000001.png", None),
        ("flow", "u/frame_0000000001.jpg", f"u/{frame(1)}"),
        ("flow", "u/P08_01/v/frame_0000000001.jpg", f"v/{frame(1)}"),
        ("flow", "frame_0000000001.jpg", None),
    ],
)
def test_epic_place(part, name, place):
    assert lib.epic_place(part, name) == place


def test_epic_keeps_what_the_user_has(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    mine = root / "rgb/train/D1/P08_01" / frame(1)
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    (root / "rgb/train/D1/P08_02").mkdir()
    assert epic_main(epic, root, splits, "--parts", "rgb") == 0
    out = capsys.readouterr().out
    assert "2 fetched" in out and "1 there already" in out
    assert "rgb/P08_01.tar: kept, though it was not unpacked by this tool" in out
    assert tree(mine.parent) == {frame(1): b"mine"}
    # Something else is in the way.
    other = root / "flow/train/D1/P08_01"
    other.mkdir(parents=True)
    (other / "notes.txt").touch()
    assert epic_main(epic, root, splits) == 2
    assert f"{other} holds files, but no flow frames" in capsys.readouterr().err


def test_epic_audio(epic, splits, tmp_path, capsys):
    root, archive = tmp_path / "epic", tmp_path / "audio.zip"
    make_zip(
        archive,
        **{
            "EPIC/D1/P08_01.wav": b"one",
            "EPIC/D1/P08_02.wav": b"two",
            "__MACOSX/._P08_02.wav": b"mac",
            "EPIC/P30_01.wav": b"other",
        },
    )
    more = ["--parts", "--audio-zip", str(archive)]
    assert epic_main(epic, root, splits, *more) == 1
    out, err = capsys.readouterr()
    assert out == f"2 wavs from {archive}\n"
    assert "lacks the wav of P08_03; tools/data/extract_audio.py" in err
    folder = root / "rgb"
    assert tree(root) == {
        "rgb/train/D1/P08_01.wav": b"one",
        "rgb/train/D1/P08_02.wav": b"two",
    }
    assert os.readlink(folder / "test/D1/P08_02.wav") == "../../train/D1/P08_02.wav"
    assert epic.log == []
    # What is there is kept.
    (folder / "train/D1/P08_01.wav").write_bytes(b"mine")
    (folder / "test/D1/P08_03.wav").write_bytes(b"three")
    assert epic_main(epic, root, splits, *more) == 0
    assert (folder / "train/D1/P08_01.wav").read_bytes() == b"mine"
    assert capsys.readouterr().out == f"0 wavs from {archive}\n"


def test_epic_misuse(epic, splits, tmp_path, capsys):
    root = tmp_path / "epic"
    cases = {
        ("--parts", "video"): "unknown part 'video'; known are ['rgb', 'flow']",
        ("--sizes",): "--sizes belongs to --dry-run",
        ("--workers", "0"): "workers must be at least 1, got 0",
        ("--base-url", "data/mirror"): "is no URL http://... or https://...",
        ("--splits", str(root)): f"{root} lacks D1_train.pkl",
        ("--audio-zip", str(splits / "D1_train.csv")): "D1_train.csv is no zip file",
    }
    for more, text in cases.items():
        assert epic_main(epic, root, splits, *more) == 2
        assert text in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        epic_main(epic, root, splits, "--domains", "D4")
    assert error.value.code == 2 and epic.log == []


def test_epic_split_of_another_kitchen(splits):
    write_csv([segment(99, "P22_09")], str(splits / "D1_test.csv"))
    with pytest.raises(ValueError, match="D1 is the kitchen of P08, but .* P22_09"):
        lib.epic_videos(read_splits(str(splits), ".csv"))
    with pytest.raises(ValueError, match="unknown domain 'D4'; known are D1, D2, D3"):
        lib.epic_videos({}, ["D4"])


# --- Human-Animal-Cartoon -----------------------------------------------------

CLIPS = dict(human=["h1", "h2"], animal=["a1"], cartoon=["drinking_54 "])


def hac_files(folder=""):
    """A layout with one clip that has no sound; h1 stands in both splits."""
    files = {}
    for domain, clips in CLIPS.items():
        for clip in clips:
            base = f"{folder}{domain}"
            files[f"{base}/videos/{clip}.mp4"] = f"{clip} video".encode()
            for axis in "xy":
                name = f"{base}/flow/{clip}_flow_{axis}.mp4"
                files[name] = f"{clip} flow {axis}".encode()
            if clip != "h2":
                files[f"{base}/audio/{clip}.wav"] = f"{clip} audio".encode()
        for split in ("train", "test"):
            lines = clips if split == "train" else clips[:1]
            text = "".join(f"{clip}.mp4,0\r\n" for clip in lines)
            name = f"{folder}HAC_Splits/HAC_{split}_only_{domain}.csv"
            files[name] = text.encode()
    return files


def zip_bytes(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def publish(server, files, repo="o/hac", pages=1, blob=None):
    """Serves a repository; ``blob`` is the server that its files redirect to."""
    entries = [{"type": "directory", "oid": "0", "path": "human", "size": 0}]
    for path, body in files.items():
        entry = dict(type="file", oid="0" * 40, size=len(body), path=path)
        if lib.archive_suffix(path):
            entry["lfs"] = dict(oid=sha(body), size=len(body), pointerSize=134)
        entries.append(entry)
        url = f"/datasets/{repo}/resolve/main/{path}"
        if blob:
            target = blob.put(f"/blob/{path}", body)
            server.put(url, script=[f"redirect {target.replace(' ', '%20')}"] * 9)
        else:
            server.put(url, body)
    base = f"/api/datasets/{repo}/tree/main?recursive=true"
    step = -(-len(entries) // pages)
    for i in range(pages):
        link = None
        if i + 1 < pages:
            link = f'<{server.url}{base}&cursor={i + 1}>; rel="next"'
        text = json.dumps(entries[i * step : (i + 1) * step]).encode()
        path = f"{base}&cursor={i}" if i else base
        server.put(path, text, headers=dict(Link=link))
    return entries


def hac_main(server, root, *more):
    arguments = [str(root), "--repo", "o/hac", "--endpoint", server.url, "--quiet"]
    return hac_tool.main([*arguments, *more])


def archives():
    """One repository, packed in as many ways as are thinkable."""
    files = hac_files()
    human = {n: b for n, b in files.items() if n.startswith("human/")}
    animal = {n[7:]: b for n, b in files.items() if n.startswith("animal/")}
    cartoon = {n[8:]: b for n, b in files.items() if n.startswith("cartoon/")}
    human["__MACOSX/human/videos/._h1.mp4"] = b"mac"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, body in animal.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    flow = {n: b for n, b in cartoon.items() if n.startswith("flow/")}
    repository = {n: b for n, b in files.items() if n.startswith("HAC_Splits")}
    repository |= {
        "README.md": b"read",
        ".gitattributes": b"git",
        "EPIC-KITCHENS-audio.zip": b"not wanted",
        "HAC/human.zip": zip_bytes({f"HAC/{n}": b for n, b in human.items()}),
        "animal.tar.gz": tar.getvalue(),
        "cartoon/flow.zip": zip_bytes({n[5:]: b for n, b in flow.items()}),
    }
    for name, body in cartoon.items():
        if name not in flow:
            repository[f"cartoon/{name}"] = body
    return repository


def test_hac(server, other, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish(server, archives(), pages=3, blob=other)
    root = tmp_path / "hac"
    assert hac_main(server, root) == 0
    found = tree(root)
    markers = {n for n in found if n.startswith(".unpacked/")}
    assert {n: b for n, b in found.items() if n not in markers} == {
        **hac_files(),
        "README.md": b"read",
    }
    out = capsys.readouterr().out
    assert "left out: EPIC-KITCHENS-audio.zip\n" in out
    rows = {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}
    # train, test, clips, video, flow, audio
    assert rows["human"] == ["2", "1", "2", "2", "2", "1"]
    assert rows["animal"] == rows["cartoon"] == ["1", "1", "1", "1", "1", "1"]
    # The token never left the endpoint.
    assert set(bearer(server)) == {"Bearer hf_secret"}
    assert set(bearer(other)) == {None} and len(other.log) > 9
    pages = [s.path for s in server.log if "/api/" in s.path]
    base = "/api/datasets/o/hac/tree/main?recursive=true"
    assert pages == [base, f"{base}&cursor=1", f"{base}&cursor=2"]
    marker = json.loads((root / ".unpacked" / "cartoon%2Fflow.zip.json").read_text())
    assert marker["archive"] == "cartoon/flow.zip" and marker["files"] == 2
    # A second run fetches the listing only.
    other.log.clear()
    assert hac_main(server, root) == 0
    assert other.log == []


def test_hac_changed_archive_is_unpacked_again(server, tmp_path):
    files = archives()
    publish(server, files)
    root = tmp_path / "hac"
    assert hac_main(server, root) == 0
    assert "Authorization" not in server.log[0].headers
    files["cartoon/flow.zip"] = zip_bytes({"drinking_54 _flow_x.mp4": b"new flow"})
    publish(server, files)
    assert hac_main(server, root, "--keep-archives") == 0
    flow = root / "cartoon/flow"
    assert (flow / "drinking_54 _flow_x.mp4").read_bytes() == b"new flow"
    assert (flow / "drinking_54 _flow_y.mp4").read_bytes() == b"drinking_54  flow y"
    kept = root / "archives/cartoon/flow.zip"
    assert kept.read_bytes() == files["cartoon/flow.zip"]


def test_hac_killed_while_unpacking(server, tmp_path, monkeypatch, capsys):
    publish(server, archives())
    root = tmp_path / "hac"
    copy, count = lib._copy, []

    def killed(source, path, monitor):
        count.append(path)
        if path.name == "h1_flow_y.mp4":
            raise StoppedError
        return copy(source, path, monitor)

    with monkeypatch.context() as patch:
        patch.setattr(lib, "_copy", killed)
        assert hac_main(server, root, "--workers", "1") == 1
    assert not (root / ".unpacked" / "HAC%2Fhuman.zip.json").exists()
    assert (root / "human/videos/h1.mp4").exists()
    assert (root / "archives/HAC/human.zip").exists()
    server.log.clear()
    capsys.readouterr()
    assert hac_main(server, root) == 0
    assert server.gets("/datasets/o/hac/resolve/main/HAC/human.zip") == []
    out = capsys.readouterr().out
    # Three archives, a video and a sound; the split files and README.md were there.
    assert "12 files: 5 fetched (" in out and ", 7 there already" in out
    assert {n: b for n, b in tree(root).items() if n in hac_files()} == hac_files()


def test_hac_wrong_checksum(server, tmp_path, capsys):
    files = archives()
    publish(server, files)
    url = "/datasets/o/hac/resolve/main/animal.tar.gz"
    good = files["animal.tar.gz"]
    bad = bytes([good[0] ^ 1]) + good[1:]
    server.files[url].body = bad
    root = tmp_path / "hac"
    assert hac_main(server, root) == 1
    err = capsys.readouterr().err
    assert f"its sha256 is {sha(bad)}, but {sha(good)} is published" in err
    assert "failed: animal: 3 files of the split files' clips are missing" in err
    assert not (root / "archives/animal.tar.gz").exists()
    assert not (root / "animal").exists()


def test_hac_missing_parts(server, tmp_path, capsys):
    files = hac_files()
    del files["human/flow/h2_flow_y.mp4"], files["cartoon/audio/drinking_54 .wav"]
    publish(server, files)
    root = tmp_path / "hac"
    assert hac_main(server, root) == 1
    out, err = capsys.readouterr()
    rows = {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}
    assert rows["human"] == ["2", "1", "2", "2", "1", "1"]
    # Sound may be missing.
    assert rows["cartoon"] == ["1", "1", "1", "1", "1", "0"]
    assert err.count("failed") == 1
    text = "human: 1 files of the split files' clips are missing, the first is"
    assert f"{text} {root}/human/flow/h2_flow_y.mp4" in err


def test_hac_without_splits(server, tmp_path, capsys):
    files = {n: b for n, b in hac_files().items() if "Splits" not in n}
    publish(server, files)
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert "no split file" in err and "SimMMDG, in dataset/HAC_Splits" in err


def test_hac_dry_run(server, tmp_path, capsys):
    publish(server, archives())
    root = tmp_path / "hac"
    assert hac_main(server, root, "--dry-run", "--exclude") == 0
    out = capsys.readouterr().out
    url = f"{server.url}/datasets/o/hac/resolve/main"
    archive = f"{url}/cartoon/flow.zip -> {root}/archives/cartoon/flow.zip -> {root} ("
    assert archive in out
    assert f"{url}/EPIC-KITCHENS-audio.zip -> " in out
    name = "cartoon/videos/drinking_54"
    assert f"{url}/{name}%20.mp4 -> {root}/{name} .mp4 (18 bytes)" in out
    assert [s.method for s in server.log] == ["GET"] and not root.exists()


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil", "", "a//b"]
)
def test_hac_paths_that_lead_out(server, tmp_path, capsys, path):
    publish(server, {path: b"evil"})
    assert hac_main(server, tmp_path / "hac") == 1
    err = capsys.readouterr().err
    assert err.startswith("failed: ") and err.count("\n") == 1
    assert left(tmp_path) == [] and len(server.log) == 1


LISTING = "/api/datasets/o/hac/tree/main?recursive=true"


@pytest.mark.parametrize(
    "body, text",
    [
        (b'{"error": "x"}', "is no list of files, but {'error': 'x'}"),
        (b"<html>", "is no list of files; it begins with b'<html>'"),
        (b"[1]", "has an entry that is no file: 1"),
        (b'[{"type": "file"}]', "has an entry that is no file"),
        (b'[{"type": "file", "path": "a", "size": "9"}]', "has an entry that is no"),
        (
            b'[{"type": "file", "path": "a", "lfs": {"oid": "no"}}]',
            "has an entry that is no file",
        ),
    ],
)
def test_hac_malformed_listing(server, tmp_path, capsys, waits, body, text):
    server.put(LISTING, body)
    assert hac_main(server, tmp_path / "hac", "--attempts", "2") == 1
    assert text in capsys.readouterr().err


def test_hac_listing_in_a_circle(server, tmp_path, capsys):
    link = f'<{server.url}{LISTING}>; rel="next"'
    server.put(LISTING, b"[]", headers=dict(Link=link))
    assert hac_main(server, tmp_path / "hac") == 1
    assert "leads back to itself" in capsys.readouterr().err
    assert len(server.log) == 1


def test_hac_next_page_on_another_host(server, other, monkeypatch):
    """As a mirror may send it; without the token."""
    page = [dict(type="file", path="b", size=2)]
    there = other.put("/page2", json.dumps(page).encode())
    link = f'<{there}>; rel="prev next", <http://x/>; rel="last"'
    server.put(LISTING, b'[{"type": "file", "path": "a", "size": 1}]')
    server.files[LISTING].headers = dict(Link=link.replace("prev ", ""))
    files = lib.list_dataset("o/hac", endpoint=server.url, token="t", options=FAST)
    assert files == [lib.RemoteFile("a", 1, None), lib.RemoteFile("b", 2, None)]
    assert bearer(server) == ["Bearer t"] and bearer(other) == [None]


def test_hac_unknown_repository(server, tmp_path, capsys):
    assert hac_main(server, tmp_path / "hac") == 1
    assert "Is there a dataset o/hac with the revision main?" in capsys.readouterr().err
    assert hac_main(server, tmp_path / "hac", "--repo", "../x") == 2
    assert "repo must be owner/name, got '../x'" in capsys.readouterr().err
    assert hac_main(server, tmp_path / "hac", "--endpoint", "huggingface.co") == 2


@pytest.mark.parametrize(
    "name, archive, place",
    [
        ("HAC/human/videos/x.mp4", "", "human/videos/x.mp4"),
        ("videos/x.mp4", "human.zip", "human/videos/x.mp4"),
        ("x.mp4", "human_videos.zip", "human/videos/x.mp4"),
        ("x_flow_x.mp4", "animal/flow.tar.gz", "animal/flow/x_flow_x.mp4"),
        ("a/x.wav", "data/Cartoon.zip", "cartoon/audio/x.wav"),
        (
            "HAC_train_only_human.csv",
            "splits.zip",
            "HAC_Splits/HAC_train_only_human.csv",
        ),
        ("animal/videos/x.mp4", "Human-Animal-Cartoon.zip", "animal/videos/x.mp4"),
        ("x.mp4", "Human-Animal-Cartoon.zip", "x.mp4"),
        ("read/me.txt", "docs/human.zip", "docs/read/me.txt"),
        ("README.md", "", "README.md"),
        ("human/.DS_Store", "", None),
        ("__MACOSX/human/x.mp4", "human.zip", None),
    ],
)
def test_hac_place(name, archive, place):
    assert lib.hac_place(name, archive) == place


def test_published_hac_counts(tmp_path):
    """The published split files, with an empty file for each clip."""
    source = SPLITS.parent / "hac"
    if not source.is_dir():
        pytest.skip(f"the real split files are not in {source} (set MBCD_SPLITS)")
    (tmp_path / "HAC_Splits").symlink_to(source.resolve())
    for domain in ("human", "animal", "cartoon"):
        (tmp_path / domain / "videos").mkdir(parents=True)
        for split in ("train", "test"):
            with open(source / f"HAC_{split}_only_{domain}.csv", newline="") as file:
                for name, _ in csv.reader(file):
                    (tmp_path / domain / "videos" / name).touch()
    counts = lib.verify_hac(tmp_path)
    assert [c.rows for c in counts] == [(1111, 276), (730, 176), (870, 218)]
    assert [c.clips for c in counts] == [1363, 906, 1088]
    assert [c.found for c in counts] == [
        dict(video=n, flow=0, audio=0) for n in (1363, 906, 1088)
    ]
    assert [len(c.missing) for c in counts] == [2726, 1812, 2176]


# --- weights ------------------------------------------------------------------


def test_published_weights():
    jobs = lib.weight_jobs(Path("checkpoints"))
    assert {j.download.path.name: j.download.checksum for j in jobs} == {
        "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth": (
            "sha256:0dd54025"
        ),
        "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth": (
            "sha256:6b384243"
        ),
        "H.pth.tar": None,
    }
    assert [j.download.urls[0].rsplit("/", 1)[0] for j in jobs] == [
        "https://download.openmmlab.com/mmaction/recognition/slowfast/"
        "slowfast_r101_8x8x1_256e_kinetics400_rgb",
        "https://download.openmmlab.com/mmaction/recognition/slowonly/"
        "slowonly_r50_8x8x1_256e_kinetics400_flow",
        "http://www.robots.ox.ac.uk/~vgg/data/vggsound/models",
    ]
    # The names are those that the config looks for.
    config = ROOT / "configs/mbcd/_base_/models/slowfast_slowonly_resnet18.py"
    text = re.sub(r'"\s*"', "", config.read_text())
    for job in jobs:
        assert f'"{job.download.path}"' in text


def test_weights(server, tmp_path, monkeypatch, capsys):
    video, audio = data(5000), data(4000, seed=1)
    name = f"net_20200101-{sha(video)[:8]}.pth"
    urls = dict(video=server.put(f"/{name}", video))
    urls["audio"] = server.put("/H.pth.tar", audio)
    monkeypatch.setattr(lib, "WEIGHTS", urls)
    arguments = [str(tmp_path / "c"), "--quiet", "--only", "video", "audio"]
    assert weights_tool.main(arguments) == 0
    assert tree(tmp_path / "c") == {name: video, "H.pth.tar": audio}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        f"sha256 {sha(video)}  {name} (published: {sha(video)[:8]})",
        f"sha256 {sha(audio)}  H.pth.tar (published: none)",
    ]
    (tmp_path / "c" / name).unlink()
    server.put(f"/{name}", audio)
    assert weights_tool.main(arguments) == 1
    out, err = capsys.readouterr()
    assert f"its sha256 is {sha(audio)}, but {sha(video)[:8]} is published" in err
    assert name not in out and "H.pth.tar (published: none)" in out
    assert left(tmp_path / "c") == ["H.pth.tar"]


def test_weights_dry_run(server, tmp_path, monkeypatch, capsys):
    url = server.put("/H.pth.tar", data(4000))
    monkeypatch.setattr(lib, "WEIGHTS", dict(audio=url))
    more = ["--only", "audio", "--dry-run", "--sizes"]
    assert weights_tool.main([str(tmp_path / "c"), *more]) == 0
    assert capsys.readouterr().out == (
        f"{url} -> {tmp_path}/c/H.pth.tar (4.0 kB)\n"
        "dry run: 1 files, 4.0 kB; nothing written\n"
    )
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="no weights for 'depth'; there are some for"):
        lib.weight_jobs(tmp_path, ["depth"])


def test_exit_codes(capsys):
    def raises(error):
        def command():
            raise error

        return command

    assert lib.exit_code(lambda: 0) == 0
    assert lib.exit_code(raises(ValueError("bad"))) == 2
    assert lib.exit_code(raises(FileNotFoundError("gone"))) == 2
    assert lib.exit_code(raises(DownloadError("none"))) == 1
    assert lib.exit_code(raises(KeyboardInterrupt())) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: bad",
        "error: gone",
        "failed: none",
        "stopped; run it again to go on",
    ]
