import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from mmaction_mbcd.experiments import planning
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share
from mmaction_mbcd.experiments.local import run_here
from tests_support import ROOT, load_tool

tool = load_tool("experiment")


def experiment(data, out, **changes):
    content = dict(datasets=["synth_action"], methods=["erm"], targets=["sketch"],
                   seeds=[0, 1], data_root=str(data),
                   options={"train_cfg.max_epochs": 5,
                            "train_dataloader.batch_size": 8})  # fmt: skip
    made = Experiment(Grid.of(content | changes), Path(out), ROOT)
    made.resolve()
    return made


def test_steps_and_clips_by_hand(tiny_data, tmp_path):
    # Six classes, two training and one test clip each, in two source domains.
    made = experiment(tiny_data, tmp_path, select=["source", "last"],
                      evaluate=["target", "in_domain"])  # fmt: skip
    found = planning.plan(made)
    assert (len(found.needs), found.done, found.problems) == (2, 0, [])
    for need in found.needs:
        assert need.steps == 5 * (24 // 8)
        # Validated in epochs 2, 4 and 5: 12 source clips. The target's test clips are
        # watched by the configs of this data set.
        validated = 3 * 12
        tested = 2 * (18 + 12)
        assert need.clips == validated + tested


def test_a_config_that_cannot_be_built_is_said_once(tiny_data, tmp_path):
    made = experiment(tiny_data, tmp_path, targets=["sketch", "street"],
                      options={"model.neck.type": "NoSuchNeck"})  # fmt: skip
    found = planning.plan(made)
    assert not found.needs and len(found.problems) == 1
    assert "synth_action erm to-sketch: " in found.problems[0]
    assert "NoSuchNeck" in found.problems[0]


def test_a_batch_that_is_never_full_is_said(tiny_data, tmp_path):
    made = experiment(tiny_data, tmp_path, options={"train_dataloader.batch_size": 64})
    found = planning.plan(made)
    assert not found.needs and "there is no training batch" in found.problems[0]


def test_a_removed_modality_is_said(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shutil.rmtree(data / "studio" / "flow")
    found = planning.plan(experiment(data, tmp_path / "out"))
    assert not found.needs and "studio" in found.problems[0]
    assert "flow" in found.problems[0]


@pytest.mark.long
def test_data_that_is_removed_behind_the_plan_is_one_line(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    made = experiment(data, tmp_path / "out", seeds=[0])
    made.write()
    assert not planning.plan(made).problems
    shutil.rmtree(data)
    ends = []
    run_here(
        made, made.runs, [Share(threads=1, workers=0)], lambda *end: ends.append(end)
    )
    (run,) = made.runs
    assert [what for _, what, _ in ends] == ["started", "failed"]
    assert run.folder.state == "failed" and str(data) in run.folder.error()
    assert "\n" not in run.folder.error()


class Tool:
    """A measurement that takes no time: writes what the tool would."""

    def __init__(self, result):
        self.result, self.lines = result, []

    def __call__(self, line, log, environment):
        self.lines.append(line)
        log.write_text("train.py: error: no such thing\n")
        if self.result is not None:
            out = Path(line[line.index("--out") + 1])
            out.write_text(json.dumps(self.result))
        return self

    def exitcode(self):
        return 0 if self.result else 2


MEASURED = dict(step=0.5, clip=0.25, start=10.0, checkpoint=1_000_000)


def test_time_and_room_from_one_measurement_of_each_method(tiny_data, tmp_path):
    made = experiment(tiny_data, tmp_path, methods=["erm", "ema"])
    needs, tool = planning.plan(made).needs, Tool(MEASURED)
    assert planning.measure(made, needs, Share(), launch=tool) == []
    assert len(tool.lines) == 2 == planning.kinds(needs, Share())
    assert {line[line.index("--") + 1].split("/")[-1] for line in tool.lines} == {
        "erm.py", "ema.py"}  # fmt: skip
    for need in needs:
        expected = 10 + 0.5 * need.steps + 0.25 * need.clips
        assert need.seconds == pytest.approx(expected)
        # Two of the last, the best, and one more while it is written.
        assert need.bytes == 4 * MEASURED["checkpoint"]
    again = Tool(None)
    assert planning.measure(made, needs, Share(), launch=again) == []
    assert not again.lines  # it is known
    other = Share(threads=1, workers=1)
    said = planning.measure(made, needs, other, launch=again)
    assert len(again.lines) == 2
    assert said[0] == "erm: train.py: error: no such thing"


def test_room_for_every_epoch_where_one_of_them_is_chosen_later(tiny_data, tmp_path):
    made = experiment(tiny_data, tmp_path,
                      select=["source", "leave_one_source_out"])  # fmt: skip
    found = planning.plan(made)
    assert len(found.needs) == 2 * 3  # two runs more for each, a source left out
    planning.measure(made, found.needs, Share(), launch=Tool(MEASURED))
    sizes = {need.run.spec.purpose: (need.bytes, need.kept) for need in found.needs}
    assert sizes == {
        # Every epoch's, the best, and one more while it is written; one stays.
        "grid": ((5 + 1 + 1) * 1_000_000, 1_000_000),
        "leave_one_source_out": ((2 + 1 + 1) * 1_000_000, 0),
    }


def test_too_little_room_is_said(tiny_data, tmp_path, monkeypatch):
    made = experiment(tiny_data, tmp_path / "not/there/yet")
    found = planning.plan(made)
    planning.measure(made, found.needs, Share(), launch=Tool(MEASURED))
    assert planning.disk_problem(made, found, jobs=2) == ""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(planning.shutil, "disk_usage",
                        lambda path: usage._replace(free=9_000_000))  # fmt: skip
    # Two finished runs keep one checkpoint each, two running ones have four.
    said = planning.disk_problem(made, found, jobs=2)
    assert "9 MB free" in said and "about 10 MB" in said


def test_what_is_shown(tiny_data, tmp_path):
    made = experiment(tiny_data, tmp_path)
    found = planning.plan(made)
    assert planning.headline(found, 2) == "2 runs to do, 0 done: 30 steps"
    for need in found.needs:
        need.seconds = 600.0
        need.bytes, need.kept = 4_000_000, 1_000_000
    said = planning.headline(found, 2)
    assert said.endswith("about 10 min with 2 jobs at a time, 10 MB of checkpoints")
    assert planning.table(found, 2).row_count == 1


@pytest.mark.long
def test_steps_that_are_really_made(tiny_data, tmp_path, capsys):
    """By the verb, with a training and its data, then known without another."""
    line = ["plan", "--datasets", "synth_action", "--methods", "erm", "--targets",
            "sketch", "--data-root", str(tiny_data), "--out", str(tmp_path),
            "--jobs", "1",
            "--cfg-options", "train_dataloader.batch_size=8"]  # fmt: skip
    assert tool.main(line) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 runs to do, 0 done: 48 steps, about" in shown
    assert "with 1 job at a time" in shown and "MB of checkpoints" in shown
    known = json.loads((tmp_path / planning.MEASURED_FILE).read_text())
    (found,) = known.values()
    assert 0 < found["step"] < 60 and 0 < found["clip"] < 60
    assert found["checkpoint"] > 1e5
    began = time.monotonic()
    assert tool.main(line) == 0
    assert time.monotonic() - began < 30
    assert json.loads((tmp_path / planning.MEASURED_FILE).read_text()) == known


@pytest.mark.parametrize(
    ("options", "gpus", "shown", "measured"),
    [
        (["--cpus", "3"], 1, "with 4 jobs at a time", Share(1, 2, ("0",), 1)),
        (["--jobs", "2"], 1, "with 2 jobs at a time", Share(1, 3, ("0",), 1)),
        (["--gpus-per-job", "0"], 1, "with 4 jobs at a time", Share(1, 1, (), 1)),
        (["--gpus-per-job", "2"], 1, "has not the GPUs that a job has", None),
        ([], 0, "has not the GPUs that a job has", None),
        (
            ["--gpus-per-job", "0", "--sbatch", "gres=gpu:1"],
            1,
            "are not measured",
            None,
        ),
    ],
)
def test_slurms_jobs_are_planned_as_it_gets_them(
    tiny_data, tmp_path, capsys, monkeypatch, options, gpus, shown, measured
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    seen = []

    def measure(experiment, needs, share, **kwargs):
        seen.append(share)
        for need in needs:
            need.seconds, need.bytes, need.kept = 60.0, 10, 1
        return []

    monkeypatch.setattr(tool.planning, "measure", measure)
    line = ["plan", "--datasets", "synth_action", "--methods", "erm", "ema",
            "--targets", "sketch", "--seeds", "0", "1", "--data-root", str(tiny_data),
            "--out", str(tmp_path), "--slurm", "--time", "60", *options]  # fmt: skip
    assert tool.main(line) == 0
    assert shown in " ".join(capsys.readouterr().out.split())
    assert seen == ([measured] if measured else [])


@pytest.mark.parametrize(
    "number, text", [(12, "12 B"), (45_600, "46 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes_as_people_write_them(number, text):
    assert planning.size(number) == text


def test_the_first_steps_do_not_count():
    times = planning.StepTimes(6)
    times.times = [0.0, 100.0, 101.0, 102.5, 104.0]
    assert times.per_step() == pytest.approx(1.5)
    times.times = [0.0, 2.0]
    assert times.per_step() == pytest.approx(2.0)
