import io
import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from download_support import FAST, data, free, left, make_zip, one
from mmaction_mbcd.preparation.downloads.archives import unpack
from mmaction_mbcd.preparation.downloads.common import (
    DownloadError,
    Monitor,
    Options,
    StoppedError,
)
from mmaction_mbcd.preparation.downloads.files import Download, digest, fetch
from mmaction_mbcd.preparation.downloads.runs import (
    Job,
    Outcome,
    exit_code,
    needed,
    report,
    run,
)


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
    assert needed(jobs, options) == 1600
    assert needed(jobs, Options(keep_archives=True)) == 1900
    free(monkeypatch, 1599)
    with pytest.raises(DownloadError, match="about 1.6 kB are needed"):
        run(jobs, options)
    assert server.log == []
    (tmp_path / "200.part").write_bytes(b"x" * 150)
    assert needed(jobs, options) == 1450


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
    jobs.append(Job(Download(("http://x/e",), tmp_path / "e", "e")))
    jobs[-1] = Job(jobs[-1].download, done=lambda: "as it was")
    outcomes = run(jobs, Options(workers=2, quiet=True))
    assert states(outcomes) == [
        ("a", "fetched"),
        ("b", "failed"),
        ("c", "failed"),
        ("d", "there"),
        ("e", "there"),
    ]
    assert report(outcomes, 12) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "5 files: 1 fetched (2 bytes in 12 s), 2 there already, 2 failed",
        "e: as it was",
    ]
    assert err.splitlines() == [
        f"failed: b: {server.url}/b: 400 Bad Request",
        "failed: c: KeyError: 'oops'",
    ]
    assert report(outcomes[:1] + outcomes[3:], 1) == 0


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
        return report(run([Job(one(url, path))], options), 0)

    os._exit(exit_code(command))


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
        lambda m: digest(tmp_path / "b", monitor=m),
        lambda m: unpack(tmp_path / "c.zip", tmp_path / "d", monitor=m),
    ):
        (tmp_path / "b").write_bytes(b"x")
        make_zip(tmp_path / "c.zip", x=b"y")
        with pytest.raises(StoppedError):
            action(Monitor(stop=stop))
    assert server.log == [] and left(tmp_path / "d") == []


def test_report_of_a_stop(capsys):
    outcomes = [Outcome(str(i), "stopped") for i in range(7)]
    assert report(outcomes, 3) == 1
    out, err = capsys.readouterr()
    assert out == "7 files: 0 fetched (0 bytes in 3 s), 7 stopped\n"
    assert err == "stopped: 0, 1, 2, 3, 4 and 2 more; run it again to go on\n"


def test_exit_codes(capsys):
    def raises(error):
        def command():
            raise error

        return command

    assert exit_code(lambda: 0) == 0
    assert exit_code(raises(ValueError("bad"))) == 2
    assert exit_code(raises(FileNotFoundError("gone"))) == 2
    assert exit_code(raises(DownloadError("none"))) == 1
    assert exit_code(raises(KeyboardInterrupt())) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: bad",
        "error: gone",
        "failed: none",
        "stopped; run it again to go on",
    ]
