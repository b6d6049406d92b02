import json

import pytest

from download_support import FAST, data, free, left, one, sha
from mmaction_mbcd.preparation.downloads.common import (
    DownloadError,
    Monitor,
    Options,
)
from mmaction_mbcd.preparation.downloads.files import alone, fetch, remote_size


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


def test_sizes(server, other, tmp_path):
    url = server.put("/a", data(1234))
    urls = (server.url + "/none", url)
    assert remote_size(one(urls, tmp_path / "a"), FAST) == 1234
    assert [s.method for s in server.log] == ["HEAD", "HEAD"]
    assert remote_size(one(url, tmp_path / "a", size=7), FAST) == 7
    with pytest.raises(DownloadError, match="/none: 404"):
        remote_size(one(urls[0], tmp_path / "a"), FAST)


def test_two_processes(server, tmp_path):
    download = one(server.put("/a", b"abc"), tmp_path / "a")
    with alone(download.path):
        with pytest.raises(DownloadError, match=f"another process.*{tmp_path}/a"):
            fetch(download, FAST)
        assert server.log == []
    fetch(download, FAST)
    assert left(tmp_path) == ["a"]


def test_lock_that_a_kill_left(server, tmp_path):
    (tmp_path / "a.lock").touch()
    fetch(one(server.put("/a", b"abc"), tmp_path / "a"), FAST)
    assert left(tmp_path) == ["a"]


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


def test_disk_that_fills_up(server, tmp_path):
    url = server.put("/a", data(5000))
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="No space left on device. Make room"):
        fetch(one(url, tmp_path / "a"), FAST)
    assert len(server.log) == 1
