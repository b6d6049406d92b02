"""Local servers that misbehave as told, and archives, for the tests of downloads."""

import hashlib
import importlib.util
import io
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from mmaction_mbcd.preparation.downloads.common import Options
from mmaction_mbcd.preparation.downloads.files import Download

ROOT = Path(__file__).parents[1]
SPLITS = (
    Path(os.environ.get("MBCD_SPLITS") or ROOT.parent / "shared" / "data" / "splits")
    / "epic"
)
FAST = Options(backoff=0, quiet=True)


def load_tool(name):
    path = ROOT / "tools" / "data" / name / "download.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}_download", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def bearer(server):
    return [s.headers.get("Authorization") for s in server.log]


def free(monkeypatch, size):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(size))


def tar_bytes(files, *members, mode="w"):
    """``files`` of names and bytes; members are TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def zip_bytes(files, *members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
        for info in members:
            archive.writestr(info, b"x")
    return buffer.getvalue()


def make_tar(path, *members, mode="w", **files):
    path.write_bytes(tar_bytes(files, *members, mode=mode))
    return path


def make_zip(path, *members, **files):
    path.write_bytes(zip_bytes(files, *members))
    return path


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }
