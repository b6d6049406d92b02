"""Single files, and runs of many."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest

from helpers.download_server import data, free, left, sha
from mmaction_mbcd.preparation.downloads.files import DownloadError, File, fetch
from mmaction_mbcd.preparation.downloads.runs import exit_code, reason, run

QUIET = SimpleNamespace(workers=3, quiet=True, dry_run=False, keep_archives=False)
BODY = data(300_000)


def one(url, path, **kwargs):
    urls = (url,) if isinstance(url, str) else tuple(url)
    return File(path.name, urls, path, **kwargs)


def failure(file):
    """The line that a run would print."""
    with pytest.raises(Exception) as error:
        fetch(file)
    return reason(error.value)


def test_whole_file(server, tmp_path):
    file = one(server.put("/a.bin", BODY), tmp_path / "deep" / "a.bin", size=300_000)
    assert fetch(file) is True
    assert file.path.read_bytes() == BODY and left(file.path.parent) == ["a.bin"]
    assert fetch(file) is False
    assert server.ranges() == [None]
    fetch(one(server.put("/empty"), tmp_path / "empty"))
    assert (tmp_path / "empty").read_bytes() == b""


def test_dropped_connection_is_resumed(server, tmp_path, waits):
    url = server.put("/a", BODY, script=["drop 100000", "drop 50000", "status 503"])
    fetch(one(url, tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-", *["bytes=150000-"] * 2]


def interrupt(server, tmp_path, **kwargs):
    """A run that got 100,000 bytes and then lost its server."""
    drops = ["drop 100000", *["status 404"] * 9]
    url = server.put("/a", BODY, script=drops, **kwargs)
    assert "404" in failure(one(url, tmp_path / "a"))
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".part" and part.read_bytes() == BODY[:100_000]
    server.files["/a"].script = []
    server.log.clear()
    return one(url, tmp_path / "a")


def test_next_run_resumes(server, tmp_path, waits):
    file = interrupt(server, tmp_path)
    fetch(file)
    assert file.path.read_bytes() == BODY
    assert server.ranges() == ["bytes=100000-"] and left(tmp_path) == ["a"]


def test_killed_before_the_rename(server, tmp_path, waits):
    """A complete part is not fetched again."""
    file = interrupt(server, tmp_path)
    next(tmp_path.iterdir()).write_bytes(BODY)
    fetch(file)
    assert file.path.read_bytes() == BODY and server.gets() == []


@pytest.mark.parametrize("size", [150_000, 300_000, 400_000])
def test_changed_file_is_not_stitched(server, tmp_path, waits, size):
    file = interrupt(server, tmp_path)
    new = data(size, seed=1)
    server.put("/a", new, etag='"v2"')
    fetch(file)
    assert file.path.read_bytes() == new
    assert server.ranges() == [None] and left(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "served, script, ranges",
    [
        (dict(etag=None), [], [None]),  # the version is unknown
        (dict(ranges=False), [], ["bytes=100000-"]),
        ({}, ["status 416"], ["bytes=100000-", None]),
    ],
)
def test_server_that_cannot_go_on(server, tmp_path, waits, served, script, ranges):
    file = interrupt(server, tmp_path, **served)
    server.files["/a"].script = script
    fetch(file)
    assert file.path.read_bytes() == BODY and server.ranges() == ranges


def test_part_or_answer_that_is_too_long(server, tmp_path, waits):
    file = interrupt(server, tmp_path)
    next(tmp_path.iterdir()).write_bytes(BODY + b"x")
    server.files["/a"].script = ["extra"]
    fetch(file)
    assert file.path.read_bytes() == BODY and left(tmp_path) == ["a"]


def test_unknown_length(server, tmp_path):
    url = server.put("/a", BODY, script=["H:nolength", "nolength"])
    fetch(one(url, tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BODY and len(server.gets()) == 1


def test_second_url(server, tmp_path):
    urls = [f"{server.url}/train/a", f"{server.url}/test/a"]
    assert failure(one(urls, tmp_path / "a")) == " or ".join(urls) + ": 404 Not Found"
    assert left(tmp_path) == []
    server.put("/test/a", BODY)
    fetch(one(urls, tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    "script, text, asked",
    [
        (["H:status 403"], "/a: 403", 1),
        (["status 401"], "/a: 401 Unauthorized. Its terms may have", 2),
        (["H:status 500"] * 9, "500 Internal Server Error", 4),
        (["status 500"] * 9, "500 Internal Server Error", 6),
        (["H:redirect /a"] * 99, "redirect", None),
        (["H:redirect file:///etc/passwd"], "file://", 1),
        (["H:redirect ftp://127.0.0.1/a"], "ftp://", 1),
    ],
)
def test_answers_that_are_of_no_use(server, tmp_path, waits, script, text, asked):
    text_ = failure(one(server.put("/a", BODY, script=script), tmp_path / "a"))
    assert text in text_ and "\n" not in text_
    assert asked in (None, len(server.log))
    assert not (tmp_path / "a").exists()


def test_web_page_instead_of_a_file(server, tmp_path):
    page = {"Content-Type": "text/html; charset=utf-8"}
    url = server.put("/a", b"<html>", headers=page)
    assert failure(one(url, tmp_path / "a")) == f"{url} is a web page, not the file"


def test_no_server(server, tmp_path, waits):
    server.close()
    assert "refused" in failure(one(f"{server.url}/a", tmp_path / "a"))


def test_stalled_server(server, tmp_path, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    url = server.put("/a", BODY, script=["stall 5000"])
    fetch(one(url, tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.ranges() == [None, "bytes=5000-"]


@pytest.mark.parametrize("digits", [64, 8])
def test_checksum(server, tmp_path, digits):
    bad = data(1000, seed=1)
    published = sha(BODY)[:digits]
    file = one(server.put("/a", bad), tmp_path / "a", sha256=published)
    text = f"its sha256 is {sha(bad)}, but {published} is published"
    assert text in failure(file) and left(tmp_path) == []
    server.put("/a", BODY)
    # What is there and is damaged is fetched again.
    file.path.write_bytes(bad)
    assert fetch(file) is True and fetch(file) is False
    assert file.path.read_bytes() == BODY


def test_other_size_than_published(server, tmp_path):
    file = one(server.put("/a", BODY), tmp_path / "a", size=299_999)
    assert "it has 300000 bytes, but 299999 are published" in failure(file)
    assert left(tmp_path) == []
    file.path.write_bytes(BODY[:-1])
    assert fetch(file) is False


def test_token_stays_at_home(server, other, tmp_path):
    there = other.put("/blob", BODY)
    url = server.put("/a", script=["redirect /b"])
    server.put("/b", script=[f"redirect {there}"])
    known = dict(size=len(BODY), version="1", token="secret")
    fetch(one(url, tmp_path / "a", **known))
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.tokens() == {"Bearer secret"} and other.tokens() == {None}
    assert "secret" not in repr(one(url, tmp_path / "a", **known))


def test_full_disk(server, tmp_path, monkeypatch, waits):
    file = interrupt(server, tmp_path)
    with monkeypatch.context() as patch:
        free(patch, 199_999)
        text = "200.0 kB are needed, but the disk has 200.0 kB"
        assert failure(file) == text and server.gets() == []
    (part,) = tmp_path.iterdir()
    part.unlink()
    part.symlink_to("/dev/full")
    assert "No space left on device" in failure(file) and len(server.gets()) == 1


def files_for(server, folder, **bodies):
    for name, body in bodies.items():
        server.put(f"/{name}", body)
    return [one(f"{server.url}/{name}", folder / name) for name in bodies]


def test_files_come_at_the_same_time(server, tmp_path):
    """The server answers when three requests are there."""
    files = files_for(server, tmp_path, a=b"1", b=b"22", c=b"333")
    for served in server.files.values():
        served.script = ["meet"]
    assert run(tmp_path, files, QUIET) == 0
    assert not server.barrier.broken and left(tmp_path) == ["a", "b", "c"]


def test_failures_are_named_and_the_others_fetched(server, tmp_path, capsys):
    def broken():
        raise KeyError("oops")

    files = files_for(server, tmp_path, a=b"1", b=b"2", c=b"3", d=b"4")
    server.files["/b"].script = ["status 400"]
    files[2] = one(files[2].urls, tmp_path / "c", finish=broken)
    (tmp_path / "d").write_bytes(b"4")
    files.append(one("http://x/e", tmp_path / "e", done=lambda: True))
    assert run(tmp_path, files, QUIET) == 1
    out, err = capsys.readouterr()
    assert out == "fetched: a\n5 files: 2 failed, 1 fetched, 2 there already\n"
    assert sorted(err.splitlines()) == [
        f"failed: b: {server.url}/b: 400 Bad Request",
        "failed: c: KeyError: 'oops'",
    ]
    assert run(tmp_path, [files[0], files[3]], QUIET) == 0


def test_what_is_in_the_way(server, tmp_path, capsys):
    files = files_for(server, tmp_path, a=b"1")
    with pytest.raises(ValueError, match=f"2 downloads would write {tmp_path}/a"):
        run(tmp_path, files * 2, QUIET)
    (tmp_path / "a").mkdir()
    assert run(tmp_path, files, QUIET) == 1
    err = capsys.readouterr().err
    assert err.startswith("failed: a: ") and str(tmp_path / "a") in err


def child(root, url):
    os._exit(exit_code(lambda: run(root, [one(url, root / "a")], QUIET)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stop_and_go_on(server, tmp_path, number):
    """Ctrl-C ends a stalled download at once, a kill does no harm."""
    url = server.put("/a", BODY, script=["stall 200000"])
    context = multiprocessing.get_context("fork")
    process = context.Process(target=child, args=(tmp_path, url), daemon=True)
    process.start()
    end = time.monotonic() + 20
    while not any(p.stat().st_size > 190_000 for p in tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(DownloadError, match="another download into"):
        run(tmp_path, [], QUIET)
    start = time.monotonic()
    os.kill(process.pid, number)
    process.join(10)
    assert time.monotonic() - start < 3 and process.exitcode == -number
    (part,) = tmp_path.iterdir()
    have = part.stat().st_size
    assert part.suffix == ".part" and part.read_bytes() == BODY[:have]
    assert run(tmp_path, [one(url, tmp_path / "a")], QUIET) == 0
    assert server.ranges() == [None, f"bytes={have}-"] and left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize(
    "error, code, text",
    [
        (ValueError("bad"), 2, "error: bad\n"),
        (FileNotFoundError("gone"), 2, "error: gone\n"),
        (DownloadError("none"), 1, "failed: none\n"),
        (RuntimeError("a password is needed"), 2, "error: a password is needed\n"),
    ],
)
def test_exit_codes(capsys, error, code, text):
    def command():
        raise error

    before = signal.getsignal(signal.SIGINT)
    assert exit_code(command) == code and capsys.readouterr().err == text
    assert signal.getsignal(signal.SIGINT) is before
