import time

import pytest

from download_support import FAST, bearer, data, left, one
from mmaction_mbcd.preparation.downloads.common import DownloadError, Options
from mmaction_mbcd.preparation.downloads.files import fetch

MIB = 1 << 20


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
