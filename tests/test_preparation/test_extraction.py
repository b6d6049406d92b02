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

from mmaction_mbcd.cli import UsageError
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

# A module of its own, so that worker processes can import it too.
FAULTY = '''
import os, time
from dataclasses import dataclass
from typing import ClassVar
from mmaction_mbcd.preparation.extraction import Extraction, MediaError, NothingToWrite

@dataclass(frozen=True)
class Faulty(Extraction):
    """Copies a text file twice; its first word may be a fault."""

    name: ClassVar[str] = "copy"
    nothing: ClassVar[str] = "no text"
    mark: str = ""

    def outputs(self, stem):
        return tuple(stem.with_name(f"{stem.name}_{n}.txt") for n in "ab")

    def write(self, source, targets):
        text = source.read_text()
        if text == "nothing":
            raise NothingToWrite
        targets[0].write_text(self.mark + text)
        if text == "broken":
            raise MediaError("it is broken")
        if text == "die":
            os._exit(9)
        if text.startswith("sleep"):
            source.with_suffix(".tmp").write_text(str(os.getpid()))
            source.with_suffix(".tmp").rename(source.with_suffix(".pid"))
            time.sleep(float(text.split()[1]))
        targets[1].write_text(self.mark + text)
'''


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """The class above."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "faulty_extraction.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("faulty_extraction", None)
    import faulty_extraction

    return faulty_extraction.Faulty


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
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stopped_within(seconds, pids):
    """Whether no process of these ids is left after a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


class Dots(Extraction):
    """For planning only."""

    def outputs(self, stem):
        return (stem.with_name(stem.name + ".out"),)


class Frames(Extraction):
    """For planning only: folders, as the flow of EPIC-Kitchens."""

    def outputs(self, stem):
        return stem / "u", stem / "v"


# ------------------------------------------------------------------ planning


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_finds_videos_by_suffix_below_links_and_not_hidden(tmp_path):
    root, other = tmp_path / "in", tmp_path / "other"
    names = ["b/x.MP4", "a.mkv", "a.avi", "b/c/y.webm", "z.mov", "y.m4v"]
    touch(root, *names, "a.txt", ".hidden.mp4", ".git/x.mp4", "mp4")
    touch(other, "linked.mp4")
    (root / "link").symlink_to(other)
    (other / "back").symlink_to(root)  # a circle
    base, found = find_videos(root)
    assert base == root
    assert [str(p.relative_to(root)) for p in found] == sorted(
        [*names, "link/linked.mp4"]
    )


def test_one_file_and_nothing(tmp_path):
    touch(tmp_path, "dir/clip.ts")
    assert find_videos(tmp_path / "dir/clip.ts") == (
        tmp_path / "dir",
        [tmp_path / "dir/clip.ts"],
    )
    with pytest.raises(UsageError, match="no video under .*looked for .avi"):
        find_videos(tmp_path / "dir")
    with pytest.raises(UsageError, match="no file or folder"):
        find_videos(tmp_path / "absent")


def test_output_keeps_the_relative_path_and_odd_names(tmp_path):
    touch(tmp_path / "in", "a/drinking_54 .mp4", "a/v1.5.mkv")
    jobs = plan(tmp_path / "in", tmp_path / "out", Dots())
    assert [job.outputs[0] for job in jobs] == [
        tmp_path / "out/a/drinking_54 .out",
        tmp_path / "out/a/v1.5.out",
    ]


def test_equal_stems_are_refused_before_any_work(tmp_path):
    touch(tmp_path / "in", "a/x.mp4", "a/x.avi", "b/x.mp4", "c.mp4")
    with pytest.raises(UsageError, match=r"^a/x.avi and a/x.mp4 would be written"):
        extract(tmp_path / "in", tmp_path / "out", Dots())
    assert not (tmp_path / "out").exists()


def test_an_output_inside_another_ones_folder_is_refused(tmp_path):
    touch(tmp_path / "in", "p.mp4", "p/a.mp4")
    assert len(plan(tmp_path / "in", tmp_path / "out", Frames())) == 2
    touch(tmp_path / "in", "p/u.mp4")
    with pytest.raises(UsageError, match=r"p.mp4 and p/u.mp4 would be written"):
        plan(tmp_path / "in", tmp_path / "out", Frames())


class Pair(Dots):
    """Writes videos, as the flow of HAC."""

    def outputs(self, stem):
        return tuple(stem.with_name(f"{stem.name}_{axis}.mp4") for axis in "xy")


@pytest.mark.parametrize("out", [".", "flow"])
def test_outputs_that_are_videos_are_no_sources(tmp_path, out):
    touch(tmp_path, "clip.mp4")
    first = plan(tmp_path, tmp_path / out, Pair())
    touch(tmp_path / out, "clip_x.mp4", "clip_y.mp4")
    assert plan(tmp_path, tmp_path / out, Pair()) == first
    assert first[0].done


# ------------------------------------------------------------------ one job


def test_no_moment_has_all_outputs_but_half_of_them_old(tmp_path, faulty, monkeypatch):
    source = tmp_path / "x.mp4"
    source.write_text("new")
    outputs = tmp_path / "a", tmp_path / "b"
    job = Conversion(source, outputs)
    for path in outputs:
        path.write_text("old")
    seen, replace = [], os.replace

    def watching(*args):
        replace(*args)
        seen.append([p.read_text() if p.exists() else None for p in outputs])

    monkeypatch.setattr(os, "replace", watching)
    make_outputs(faulty(), job)
    assert seen == [[None, "old"], [None, None], ["new", None], ["new", "new"]]
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_a_failed_job_leaves_older_outputs_and_nothing_else(tmp_path, faulty):
    source = tmp_path / "x.mp4"
    source.write_text("broken")
    (tmp_path / "a").write_text("old")
    with pytest.raises(MediaError, match="it is broken"):
        make_outputs(faulty(), Conversion(source, (tmp_path / "a", tmp_path / "b")))
    assert {p.name for p in tmp_path.iterdir()} == {"module", "x.mp4", "a"}


def test_what_a_killed_run_left_is_replaced(tmp_path, faulty, videos):
    folder, out = videos(x="text"), tmp_path / "out"
    touch(out, "sub/.x_a.txt.part", "sub/.x_b.txt.old.part", "sub/x_a.txt")
    assert extract(folder, out, faulty(), workers=1) == 0
    assert files(out / "sub") == {"x_a.txt": "text", "x_b.txt": "text"}


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_are_reported_and_the_others_go_on(
    tmp_path, faulty, videos, workers, capsys
):
    folder, out = (
        videos(a="one", b="broken", c="nothing", d="two", e="three"),
        tmp_path / "out",
    )
    (folder / "sub/f.mp4").write_bytes(b"\xff")  # no text: an error of another kind
    (out / "sub").mkdir(parents=True)
    for name in ("e_a.txt", "e_b.txt"):
        (out / "sub" / name).write_text("made before")
    assert extract(folder, out, faulty(), workers=workers) == 1
    assert files(out / "sub") == {
        "a_a.txt": "one",
        "a_b.txt": "one",
        "d_a.txt": "two",
        "d_b.txt": "two",
        "e_a.txt": "made before",
        "e_b.txt": "made before",
    }
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("│"))
    # videos, made, already there, no text, failed
    assert [int(n) for n in row.strip("│").split("│")] == [6, 2, 1, 1, 2]
    assert lines[-4] == f"no text: {folder}/sub/c.mp4"
    assert lines[-3] == f"failed: {folder}/sub/b.mp4: it is broken"
    assert lines[-2].startswith(f"failed: {folder}/sub/f.mp4: UnicodeDecodeError: ")
    assert "re-encode" in lines[-1]


def test_second_run_does_only_the_rest(tmp_path, faulty, videos, capsys):
    folder, out = videos(a="one", b="broken", c="two"), tmp_path / "out"
    assert extract(folder, out, faulty(), workers=1) == 1
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.txt")}
    assert len(times) == 4
    (folder / "sub/b.mp4").write_text("repaired")
    (out / "sub/c_b.txt").unlink()  # half a pair is as good as none
    assert extract(folder, out, faulty(), workers=1) == 0
    assert files(out / "sub")["b_b.txt"] == "repaired"
    again = {p.name for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert again == {"c_a.txt", "c_b.txt"}
    capsys.readouterr()
    before = files(out)
    assert extract(folder, out, faulty(), workers=1) == 0
    assert files(out) == before
    assert "│      3 │    0 │             3 │" in capsys.readouterr().out
    assert extract(folder, out, faulty(mark="+"), workers=1, overwrite=True) == 0
    assert files(out / "sub")["a_a.txt"] == "+one"


def test_a_worker_that_dies_costs_its_own_video_only(tmp_path, faulty, videos, capsys):
    texts = {f"v{i}": f"text {i}" for i in range(5)}
    folder, out = videos(**texts, v2x="die"), tmp_path / "out"
    assert extract(folder, out, faulty(), workers=2) == 1
    expected = {f"{v}_{n}.txt": text for v, text in texts.items() for n in "ab"}
    assert files(out / "sub") == expected
    printed = capsys.readouterr().out
    assert f"failed: {folder}/sub/v2x.mp4: the process that worked on it" in printed
    assert printed.count("failed: ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_prompt_tidy_and_continued(
    tmp_path, faulty, videos, number, capsys
):
    folder = videos(a="one", b="sleep 60", c="sleep 60", d="two")
    out = tmp_path / "out"

    def interrupt():
        while len(list(folder.rglob("*.pid"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    assert extract(folder, out, faulty(), workers=2) == INTERRUPTED == 130
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    pids = [path.read_text() for path in folder.rglob("*.pid")]
    assert stopped_within(2, pids)
    assert multiprocessing.active_children() == []
    assert files(out / "sub") == {"a_a.txt": "one", "a_b.txt": "one"}
    printed = capsys.readouterr().out
    assert "not reached" in printed and "Interrupted" in printed
    for name in "bc":
        (folder / "sub" / f"{name}.mp4").write_text("awake")
    made = (out / "sub/a_a.txt").stat().st_mtime_ns
    assert extract(folder, out, faulty(), workers=2) == 0
    assert len(files(out / "sub")) == 8
    assert (out / "sub/a_a.txt").stat().st_mtime_ns == made


@pytest.mark.long  # ten seconds of imports
def test_killed_run_takes_its_workers_along(tmp_path, faulty, videos):
    folder = videos(a="one", b="sleep 60", c="sleep 60")
    out = tmp_path / "out"
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(tmp_path / "module")!r})
            from faulty_extraction import Faulty
            from mmaction_mbcd.preparation.extraction import extract
            if __name__ == "__main__":
                extract({str(folder)!r}, {str(out)!r}, Faulty(), workers=2)
            """
        )
    )
    run = subprocess.Popen([sys.executable, str(script)])
    while len(list(folder.rglob("*.pid"))) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    pids = [path.read_text() for path in folder.rglob("*.pid")]
    run.kill()
    run.wait()
    assert stopped_within(5, pids)
    # Neither half of a pair has its name, so the next run makes both.
    visible = {name for name in files(out / "sub") if not name.startswith(".")}
    assert visible == {"a_a.txt", "a_b.txt"}
    for name in "bc":
        (folder / "sub" / f"{name}.mp4").write_text("awake")
    assert extract(folder, out, faulty(), workers=1) == 0
    assert len(files(out / "sub")) == 6


def test_dry_run_lists_and_writes_nothing(tmp_path, faulty, videos, capsys):
    folder, out = videos(a="one", b="broken"), tmp_path / "out"
    assert extract(folder, out, faulty(), dry_run=True) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    assert f"{folder}/sub/b.mp4 -> sub/b_a.txt, sub/b_b.txt\n" in printed
    extract(folder, out, faulty(), workers=1)
    before = files(out)
    capsys.readouterr()
    assert extract(folder, out, faulty(), dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "a.mp4 ->" not in printed
    assert "b.mp4 ->" in printed
    assert "│      2 │       1 │             1 │" in printed
    assert files(out) == before


def test_settings_of_the_folder_are_recorded_and_kept(tmp_path, faulty, videos):
    folder, out = videos(a="one"), tmp_path / "out"
    extract(folder, out, faulty(mark="-"), workers=1)
    assert json.loads((out / "copy_settings.json").read_text()) == {"mark": "-"}
    for dry_run in (False, True):
        with pytest.raises(UsageError, match=r"\(mark '-' there and '\+' here\)"):
            extract(folder, out, faulty(mark="+"), dry_run=dry_run)
    (out / "copy_settings.json").write_text("{")  # no run of ours wrote that
    with pytest.raises(UsageError, match=r"\(mark None there"):
        extract(folder, out, faulty())
    assert extract(folder, out, faulty(mark="+"), workers=1, overwrite=True) == 0
    assert json.loads((out / "copy_settings.json").read_text()) == {"mark": "+"}
    assert files(out / "sub")["a_b.txt"] == "+one"


def test_preparation_that_fails_leaves_no_settings(tmp_path, faulty, videos):
    folder, out = videos(a="one"), tmp_path / "out"

    class Unprepared(faulty):
        def prepare(self):
            raise UsageError("no weights")

    with pytest.raises(UsageError, match="no weights"):
        extract(folder, out, Unprepared(mark="-"), workers=1)
    assert extract(folder, out, faulty(mark="+"), workers=1) == 0


def test_two_runs_do_not_share_a_folder(tmp_path, faulty, videos):
    folder, out = videos(a="one"), tmp_path / "out"
    out.mkdir()
    with (out / "copy_settings.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run is extracting copy into"):
            extract(folder, out, faulty(), workers=1)
    assert extract(folder, out, faulty(), workers=1) == 0


def test_usage_errors(tmp_path, faulty, videos):
    folder = videos(a="one")
    with pytest.raises(UsageError, match="--workers: got 0"):
        extract(folder, tmp_path / "out", faulty(), workers=0)
    with pytest.raises(UsageError, match="cannot write into .*: (File exists|Not a)"):
        extract(folder, folder / "sub/a.mp4", faulty())
    assert not (tmp_path / "out").exists()
