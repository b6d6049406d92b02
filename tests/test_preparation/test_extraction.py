import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from helpers.faulty_extraction import Faulty
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.preparation.extraction import (
    INTERRUPTED,
    Conversion,
    Extraction,
    MediaError,
    extract,
    find_videos,
    make_outputs,
    plan,
)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"

    def write(**texts):
        for name, text in texts.items():
            path = folder / "sub" / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write


def files(folder: Path) -> dict[str, str]:
    """Relative path -> content, hidden files too."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def sleepers(folder, count):
    """The ids of so many processes that sleep over a video."""
    while len(found := list(folder.rglob("*.pid"))) < count:
        time.sleep(0.02)
    return [path.read_text() for path in found]


def runs(pid):
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stopped_within(seconds, pids):
    """Whether no process of these ids runs after a while."""
    end = time.monotonic() + seconds
    while any(map(runs, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Named(Extraction):
    """For planning only: outputs after a pattern."""

    def __init__(self, *patterns):
        self.patterns = patterns

    def outputs(self, stem):
        return tuple(Path(pattern.format(stem)) for pattern in self.patterns)


ONE, PAIR = Named("{}.out"), Named("{}_x.mp4", "{}_y.mp4")
FOLDERS = Named("{}/u", "{}/v")


# ------------------------------------------------------------------ planning


def test_finds_videos_by_suffix_below_links_and_not_hidden(tmp_path):
    root, other = tmp_path / "in", tmp_path / "other"
    names = ["b/x.MP4", "a.mkv", "a.avi", "b/c/y.webm", "z.mov", "y.m4v"]
    touch(root, *names, "a.txt", ".hidden.mp4", ".git/x.mp4", "mp4", "dir/clip.ts")
    touch(other, "linked.mp4")
    (root / "link").symlink_to(other)
    (other / "back").symlink_to(root)  # a circle
    base, found = find_videos(root)
    names = sorted([*names, "link/linked.mp4"])
    assert base == root and [str(p.relative_to(root)) for p in found] == names
    # One file may have any name.
    single = root / "dir/clip.ts"
    assert find_videos(single) == (root / "dir", [single])
    with pytest.raises(UsageError, match="no video under .*looked for .avi"):
        find_videos(root / "dir")
    with pytest.raises(UsageError, match="no file or folder"):
        find_videos(tmp_path / "absent")


def test_output_keeps_the_relative_path_and_odd_names(tmp_path, out):
    touch(tmp_path / "in", "a/drinking_54 .mp4", "a/v1.5.mkv")
    found = [each.outputs[0] for each in plan(tmp_path / "in", out, ONE)]
    assert found == [out / "a/drinking_54 .out", out / "a/v1.5.out"]


def test_outputs_in_each_others_way_are_refused_before_any_work(tmp_path, out):
    touch(tmp_path / "in", "a/x.mp4", "a/x.avi", "b/x.mp4", "c.mp4")
    with pytest.raises(UsageError, match=r"^a/x.avi and a/x.mp4 would be written"):
        extract(tmp_path / "in", out, ONE)
    assert not out.exists()
    touch(tmp_path / "other", "p.mp4", "p/a.mp4")
    assert len(plan(tmp_path / "other", out, FOLDERS)) == 2
    touch(tmp_path / "other", "p/u.mp4")
    with pytest.raises(UsageError, match=r"^p.mp4 and p/u.mp4 would be written"):
        plan(tmp_path / "other", out, FOLDERS)


@pytest.mark.parametrize("place", [".", "flow"])
def test_outputs_that_are_videos_are_no_sources(tmp_path, place):
    touch(tmp_path, "clip.mp4")
    first = plan(tmp_path, tmp_path / place, PAIR)
    touch(tmp_path / place, "clip_x.mp4", "clip_y.mp4")
    assert plan(tmp_path, tmp_path / place, PAIR) == first and first[0].done


# ------------------------------------------------------------------ one video


def test_no_moment_has_all_outputs_but_half_of_them_old(tmp_path, monkeypatch):
    outputs = tmp_path / "a", tmp_path / "b"
    conversion = Conversion(tmp_path / "x.mp4", outputs)
    conversion.source.write_text("new")
    for path in outputs:
        path.write_text("old")
    seen, replace = [], os.replace

    def watching(*args):
        replace(*args)
        seen.append([p.read_text() if p.exists() else None for p in outputs])

    monkeypatch.setattr(os, "replace", watching)
    make_outputs(Faulty(), conversion)
    assert seen == [[None, "old"], [None, None], ["new", None], ["new", "new"]]
    assert list(tmp_path.glob(".*")) == []
    # One that fails leaves older outputs and nothing else.
    conversion.source.write_text("broken")
    with pytest.raises(MediaError, match="it is broken"):
        make_outputs(Faulty(), conversion)
    assert files(tmp_path) == {"a": "new", "b": "new", "x.mp4": "broken"}


def test_what_a_killed_run_left_is_replaced(out, videos):
    touch(out, "sub/.x_a.txt.part", "sub/.x_b.txt.old.part", "sub/x_a.txt")
    assert extract(videos(x="text"), out, Faulty(), workers=1) == 0
    assert files(out / "sub") == {"x_a.txt": "text", "x_b.txt": "text"}


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_are_reported_and_the_others_go_on(out, videos, workers, capsys):
    folder = videos(a="one", b="broken", c="nothing", d="two", e="three")
    (folder / "sub/f.mp4").write_bytes(b"\xff")  # no text: an error of another kind
    (out / "sub").mkdir(parents=True)
    expected = {
        f"{v}_{n}.txt": t for v, t in (("a", "one"), ("d", "two")) for n in "ab"
    }
    for name in ("e_a.txt", "e_b.txt"):
        (out / "sub" / name).write_text("made before")
        expected[name] = "made before"
    assert extract(folder, out, Faulty(), workers=workers) == 1
    assert files(out / "sub") == expected
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("│"))
    # videos, made, already there, no text, failed
    assert [int(n) for n in row.strip("│").split("│")] == [6, 2, 1, 1, 2]
    assert lines[-4] == f"no text: {folder}/sub/c.mp4"
    assert lines[-3] == f"failed: {folder}/sub/b.mp4: it is broken"
    assert lines[-2].startswith(f"failed: {folder}/sub/f.mp4: UnicodeDecodeError: ")
    assert "re-encode" in lines[-1]


def test_second_run_does_only_the_rest(out, videos, capsys):
    folder = videos(a="one", b="broken", c="two")
    assert extract(folder, out, Faulty(), workers=1) == 1
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.txt")}
    assert len(times) == 4
    (folder / "sub/b.mp4").write_text("repaired")
    (out / "sub/c_b.txt").unlink()  # half a pair is as good as none
    assert extract(folder, out, Faulty(), workers=1) == 0
    assert files(out / "sub")["b_b.txt"] == "repaired"
    again = {p.name for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert again == {"c_a.txt", "c_b.txt"}
    capsys.readouterr()
    before = files(out)
    assert extract(folder, out, Faulty(), workers=1) == 0
    assert files(out) == before
    assert "│      3 │    0 │             3 │" in capsys.readouterr().out
    assert extract(folder, out, Faulty(mark="+"), workers=1, overwrite=True) == 0
    assert files(out / "sub")["a_a.txt"] == "+one"


def test_a_worker_that_dies_costs_its_own_video_only(out, videos, capsys):
    texts = {f"v{i}": f"text {i}" for i in range(5)}
    folder = videos(**texts, v2x="die")
    assert extract(folder, out, Faulty(), workers=2) == 1
    expected = {f"{v}_{n}.txt": text for v, text in texts.items() for n in "ab"}
    assert files(out / "sub") == expected
    printed = capsys.readouterr().out
    assert f"failed: {folder}/sub/v2x.mp4: the process that worked on it" in printed
    assert printed.count("failed: ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_prompt_tidy_and_continued(out, videos, number, capsys):
    folder = videos(a="one", b="sleep 60", c="sleep 60", d="two")
    pids = []

    def interrupt():
        pids.extend(sleepers(folder, 2))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert extract(folder, out, Faulty(), workers=2) == 128 + number
    assert INTERRUPTED == 130
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopped_within(2, pids) and multiprocessing.active_children() == []
    assert files(out / "sub") == {"a_a.txt": "one", "a_b.txt": "one"}
    printed = capsys.readouterr().out
    assert "not reached" in printed and "Interrupted" in printed
    videos(b="awake", c="awake")
    made = (out / "sub/a_a.txt").stat().st_mtime_ns
    assert extract(folder, out, Faulty(), workers=2) == 0
    assert len(files(out / "sub")) == 8
    assert (out / "sub/a_a.txt").stat().st_mtime_ns == made


@pytest.mark.long  # ten seconds of imports
def test_killed_run_takes_its_workers_along(repo, tmp_path, out, videos):
    folder = videos(a="one", b="sleep 60", c="sleep 60")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(repo / "tests")!r})
            from helpers.faulty_extraction import Faulty
            from mmaction_mbcd.preparation.extraction import extract
            if __name__ == "__main__":
                extract({str(folder)!r}, {str(out)!r}, Faulty(), workers=2)
            """
        )
    )
    run = subprocess.Popen([sys.executable, str(script)])
    pids = sleepers(folder, 2)
    run.kill()
    run.wait()
    assert stopped_within(5, pids)
    # Neither half of a pair has its name, so the next run makes both.
    visible = {name for name in files(out / "sub") if not name.startswith(".")}
    assert visible == {"a_a.txt", "a_b.txt"}
    videos(b="awake", c="awake")
    assert extract(folder, out, Faulty(), workers=1) == 0
    assert len(files(out / "sub")) == 6


def test_dry_run_lists_and_writes_nothing(out, videos, capsys):
    folder = videos(a="one", b="broken")
    assert extract(folder, out, Faulty(), dry_run=True) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    assert f"{folder}/sub/b.mp4 -> sub/b_a.txt, sub/b_b.txt\n" in printed
    extract(folder, out, Faulty(), workers=1)
    before = files(out)
    capsys.readouterr()
    assert extract(folder, out, Faulty(), dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "a.mp4 ->" not in printed and "b.mp4 ->" in printed
    assert "│      2 │       1 │             1 │" in printed
    assert files(out) == before


def test_settings_of_the_folder_are_recorded_and_kept(out, videos):
    folder, settings = videos(a="one"), out / "copy_settings.json"

    class Unprepared(Faulty):
        def prepare(self):
            raise UsageError("no weights")

    with pytest.raises(UsageError, match="no weights"):
        extract(folder, out, Unprepared(mark="*"), workers=1)
    extract(folder, out, Faulty(mark="-"), workers=1)
    assert json.loads(settings.read_text()) == {"mark": "-"}
    for dry_run in (False, True):
        with pytest.raises(UsageError, match=r"\(mark '-' there and '\+' here\)"):
            extract(folder, out, Faulty(mark="+"), dry_run=dry_run)
    settings.write_text("{")  # no run of ours wrote that
    with pytest.raises(UsageError, match=r"\(mark None there"):
        extract(folder, out, Faulty())
    assert extract(folder, out, Faulty(mark="+"), workers=1, overwrite=True) == 0
    assert json.loads(settings.read_text()) == {"mark": "+"}
    assert files(out / "sub")["a_b.txt"] == "+one"


def test_requests_that_cannot_work(tmp_path, out, videos):
    folder = videos(a="one")
    with pytest.raises(UsageError, match="--workers: got 0"):
        extract(folder, out, Faulty(), workers=0)
    with pytest.raises(UsageError, match="cannot write into .*: (File exists|Not a)"):
        extract(folder, folder / "sub/a.mp4", Faulty())
    assert not out.exists()
    # Two runs do not share a folder.
    out.mkdir()
    with (out / "copy_settings.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run is extracting copy into"):
            extract(folder, out, Faulty(), workers=1)
    assert extract(folder, out, Faulty(), workers=1) == 0
