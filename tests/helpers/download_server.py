"""A local server that misbehaves as told, and archives, for the tests of downloads."""

import hashlib
import importlib.util
import io
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

ROOT = Path(__file__).parents[2]


def load_tool(name):
    path = ROOT / "tools" / "data" / name / "download.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}_download", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Served:
    """What a path serves. ``script`` has one word per GET, then all is well."""

    body: bytes = b""
    etag: str | None = '"v1"'
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
        server, path = self.server.owner, unquote(self.path)
        headers = {name.title(): value for name, value in self.headers.items()}
        server.log.append(Seen(self.command, path, headers))
        file = server.files.get(path)
        if file is None:
            return self.send_error(404)
        word = "ok"
        if file.script and (self.command == "GET" or file.script[0][:2] == "H:"):
            word = file.script.pop(0).removeprefix("H:")
        verb, _, rest = word.partition(" ")
        try:
            getattr(self, f"do_{verb}")(file, rest)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def begin(self, file, length=True):
        """Sends the head; where the body starts."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, size = int(asked[1]) if asked and file.ranges else 0, len(file.body)
        self.send_response(206 if start else 200)
        headers = {"ETag": file.etag, **file.headers}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if length:
            headers["Content-Length"] = str(size - start)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        return start

    def do_ok(self, file, _):
        start = self.begin(file)
        if self.command == "GET":
            self.wfile.write(file.body[start:])

    def do_drop(self, file, count):
        start = self.begin(file)
        self.wfile.write(file.body[start : start + int(count)])

    def do_nolength(self, file, _):
        self.begin(file, length=False)
        if self.command == "GET":
            self.wfile.write(file.body)

    def do_extra(self, file, _):
        """More than there is, with a head that hides it."""
        self.begin(file, length=False)
        self.wfile.write(file.body + b"x")

    def do_stall(self, file, count):
        self.do_drop(file, count)
        self.wfile.flush()
        self.server.owner.release.wait(20)

    def do_meet(self, file, _):
        """Answers when enough requests are here at once."""
        self.server.owner.barrier.wait(10)
        self.do_ok(file, _)

    def do_status(self, file, code):
        self.send_response(int(code))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_redirect(self, file, url):
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server:
    def __init__(self):
        self.files, self.log = {}, []
        self.release, self.barrier = threading.Event(), threading.Barrier(3)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self
        threading.Thread(
            target=self.http.serve_forever, args=(0.02,), daemon=True
        ).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def put(self, path, body=b"", **kwargs):
        self.files[path] = Served(body, **kwargs)
        return self.url + path

    def ranges(self, path=None):
        """The ranges that were asked for, GET by GET."""
        return [s.headers.get("Range") for s in self.gets(path)]

    def gets(self, path=None):
        return [s for s in self.log if s.method == "GET" and path in (None, s.path)]

    def tokens(self):
        return {s.headers.get("Authorization") for s in self.log}

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


def sha(body):
    return hashlib.sha256(body).hexdigest()


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


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
