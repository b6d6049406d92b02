"""Intervals, curves and the demo's own errors."""

import json
import math

import pandas as pd
import pytest
from PIL import Image

from mmaction_mbcd.analysis.curves import draw_curves, read_curves
from mmaction_mbcd.analysis.statistics import accuracy_interval
from mmaction_mbcd.experiments import demo
from mmaction_mbcd.experiments.running import RunError


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 10), (7, 10), (90, 180), (180, 180)]
)
def test_wilson_interval(correct, count):
    z, p = 1.959963984540054, correct / count
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    half /= 1 + z**2 / count
    low, high = accuracy_interval(p, count)
    assert low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1, centre + half), abs=1e-9)


@pytest.mark.parametrize(("accuracy", "count"), [(0.5, 0), (0.333, 10)])
def test_an_accuracy_that_is_no_share_of_n_is_refused(accuracy, count):
    with pytest.raises(ValueError, match=f"N={count}"):
        accuracy_interval(accuracy, count)


def write_scalars(folder, name, entries):
    path = folder / name / "vis_data"
    path.mkdir(parents=True)
    lines = [json.dumps(entry) for entry in entries]
    (path / "scalars.json").write_text("\n".join(lines) + "\n")


def entry(step, top1):
    metrics = {"source/top1": top1, "source/video/top1": top1 / 2}
    metrics |= {"target/top1": top1 / 4, "target/video/top1": top1 / 8}
    return metrics | {"step": step, "time": 1.0, "data_time": 0.1}


def test_curves_of_a_resumed_run_are_joined(tmp_path):
    write_scalars(
        tmp_path, "1", [{"loss": 1.0, "step": 5}, entry(1, 0.4), entry(2, 0.5)]
    )
    write_scalars(tmp_path, "2", [entry(2, 0.5), entry(3, 0.8)])
    frame = read_curves(tmp_path)
    assert list(frame.index) == [1, 2, 3]
    assert list(frame["source/top1"]) == [0.4, 0.5, 0.8]
    assert "time" not in frame and "loss" not in frame
    files = draw_curves({"A": frame, "B": frame}, ["video"], tmp_path / "c", {"A": 3})
    assert [path.name for path in files] == ["c.png", "c.svg", "c.csv"]
    assert Image.open(files[0]).width == pytest.approx(2 * 2.6 * 200, abs=2)
    drawn = pd.read_csv(files[2])
    assert list(drawn["run"]) == ["A"] * 3 + ["B"] * 3
    assert list(drawn["target/top1"]) == [0.1, 0.125, 0.2] * 2


def test_a_run_without_validation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="source/top1"):
        read_curves(tmp_path)


def test_a_failing_command_of_the_demo_shows_the_end_of_its_output(tmp_path, repo):
    options = demo.DemoOptions(
        repo=repo,
        out=tmp_path,
        methods=["mbcd"],
        synth=dict(train_per_class=1, test_per_class=1),
        cfg_options=["model.neck.mode=nonsense"],
    )
    with pytest.raises(RunError, match="mode must be adaptive, fixed or none"):
        demo.run_demo(options)
