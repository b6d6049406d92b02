"""What a long extraction says while it runs."""

import multiprocessing
import re
import time

import pytest

from helpers.forked import run_script
from media import smooth_frames, write_video
from mmaction_mbcd import progress
from mmaction_mbcd.cli import UsageError
from mmaction_mbcd.preparation.extraction import extract
from mmaction_mbcd.preparation.flow import FlowExtraction


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3600, "1 h 0 min")]
    + [(7800, "2 h 10 min"), (90 * 3600, "90 h 0 min")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def work(sender, units):
    progress.count_into(sender)
    for _ in range(units):
        progress.count()
        time.sleep(0.01)


def test_lines_forecast_and_processes(capsys, monkeypatch):
    """Without a terminal: a forecast, then lines; other processes count too."""
    monkeypatch.setattr(progress, "_DRAW", 0.05)
    monkeypatch.setattr(progress, "_FORECAST", 0.3)
    with progress.Meter("working", "steps", 1200, workers=2, interval=0.4) as meter:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=work, args=(meter.sender, 20))
        process.start()
        work(meter.sender, 60)
        progress.count_into(None)
        process.join()
        meter.add(1100)
        meter.add(-10)
        meter.title = "tidying"
        time.sleep(0.5)
    assert meter.done == 20 + 60 + 1090
    lines = capsys.readouterr().err.splitlines()
    (forecast,) = [line for line in lines if "about" in line]
    pattern = r"working: about \d+ (s|min|h \d+ min) for 1,200 steps with 2 workers"
    assert re.fullmatch(pattern, forecast)
    assert re.fullmatch(r"tidying: 1,170 of 1,200 steps, 0 s left", lines[-1])


def test_frames_are_counted_and_a_wrong_header_corrected(tmp_path, monkeypatch):
    """4 + 9 pairs, a file that is no video and one that is there already."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name, count in (("a", 5), ("b", 10), ("c", 3)):
        write_video(folder / f"{name}.mp4", smooth_frames(count))
    (folder / "d.mp4").write_text("no video")
    made = []
    monkeypatch.setattr(
        progress, "Meter", lambda *args: made.append(Kept(*args)) or made[-1]
    )
    extraction = FlowExtraction(method="dis", short_side=None)
    assert extract(folder / "c.mp4", out, extraction, workers=1) == 0
    assert (made[-1].total, made[-1].done) == (2, 2)
    for workers in (1, 2):
        assert extract(folder, out, extraction, workers, overwrite=True) == 1
        assert made[-1].unit == "frame pairs"
        assert made[-1].total == made[-1].done == 4 + 9 + 2 + 1
    made.clear()
    assert extract(folder, out, extraction, workers=1) == 1
    assert made[-1].total == 1  # three are there


class Kept(progress.Meter):
    """Looks at the counts without waiting."""


def test_piped_output_of_the_tool(repo, tmp_path):
    """What a log of a batch system sees, in real processes."""
    for name in "ab":
        write_video(tmp_path / "in" / f"{name}.mp4", smooth_frames(12))
    (tmp_path / "eager.py").write_text(
        "import runpy, sys; from mmaction_mbcd import progress as p; "
        "p._DRAW, p._FORECAST = 0.02, 0.05; "
        "init = p.Meter.__init__; "
        "p.Meter.__init__ = lambda s, *a: init(s, *a, interval=0.05); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    tool = repo / "tools" / "data" / "extract_flow.py"
    args = ["--workers", "1", "--method", "tvl1", "--short-side", "48"]
    places = [tool, tmp_path / "in", tmp_path / "out"]
    done = run_script(tmp_path / "eager.py", *places, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    states = [x for x in lines if re.search(r"\d+ of 22 frame pairs, .* left", x)]
    assert len(states) > 1 and any(
        "for 22 frame pairs with 1 worker" in x for x in lines
    )


def test_settings_without_outputs_are_no_conflict(tmp_path, capsys):
    """A first try that made nothing, or was stopped in its first video."""
    write_video(tmp_path / "in/a.mp4", smooth_frames(3))
    (tmp_path / "in/b.mp4").write_text("no video")
    out = tmp_path / "out"
    slow = FlowExtraction(method="tvl1", short_side=None)
    fast = FlowExtraction(method="dis", short_side=None)
    assert extract(tmp_path / "in/b.mp4", out, slow, 1) == 1
    (out / ".a_flow_x.mp4.part").write_bytes(b"torn")
    extract(tmp_path / "in/a.mp4", out, fast, 1, dry_run=True)
    assert extract(tmp_path / "in/a.mp4", out, fast, 1) == 0
    assert '"dis"' in (out / "flow_settings.json").read_text()
    with pytest.raises(UsageError, match="method 'dis' there and 'tvl1' here"):
        extract(tmp_path / "in/a.mp4", out, slow, 1)
    with pytest.raises(UsageError, match="short_side None there and 256 here"):
        extract(tmp_path / "in/a.mp4", out, FlowExtraction(method="dis"), 1)
