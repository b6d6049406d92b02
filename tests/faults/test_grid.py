"""Grids that are stopped, killed or fail in part end as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.grid_process import experiment_of, quick_tools, run_grid
from mmaction_mbcd import processes, scripts
from mmaction_mbcd.evaluation.predictions import Predictions
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share, forked
from mmaction_mbcd.experiments.local import run_here
from tests_support import ROOT

CONFIGS = ROOT / "configs" / "mbcd"


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def is_gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


# --- how a grid ends, with tools that import nothing

KEYS = dict(datasets=["hac"], methods=["erm"], targets=["human"], seeds=[0, 1, 2],
            select=["last"])  # fmt: skip


@pytest.fixture
def quick(tmp_path):
    """Starts the grid in a process; two of its three runs wait in the second epoch."""
    quick_tools(tmp_path)
    out, error = tmp_path / "out", tmp_path / "stderr"
    out.mkdir()
    error.touch()
    started = []

    def start(forks=False):
        args = (KEYS, out, tmp_path, CONFIGS, 2, error, forks)
        process = scripts.CONTEXT.Process(target=run_grid, args=args)
        process.start()
        started.append(process)
        return process

    start.experiment = experiment_of(KEYS, out, tmp_path, CONFIGS)
    start.out, start.error = out, error
    yield start
    for process in started:
        process.kill()
        process.join()


def states(experiment):
    return [run.folder.state for run in experiment.runs]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, -9, None),
    ],
)
@pytest.mark.parametrize(
    "whole_group", [True, pytest.param(False, marks=pytest.mark.long)]
)
def test_an_end_from_outside(quick, number, code, word, whole_group):
    """As Ctrl-C in a terminal, a batch system's signal, or too little memory."""
    (quick.out / "slow").touch()
    process = quick()
    wait_for(lambda: len(list(quick.out.glob("runs/*/*/waits"))) == 2)
    assert states(quick.experiment) == ["running", "running", "waiting"]
    pids = [int(p.read_text()) for p in quick.out.glob("runs/*/*/pid")]
    assert len(pids) == 2 and not any(map(is_gone, pids))
    (os.killpg if whole_group else os.kill)(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    wait_for(lambda: all(map(is_gone, pids)), 5)
    assert states(quick.experiment) == ["interrupted", "interrupted", "waiting"]
    said = quick.error.read_text().splitlines()
    assert "Traceback" not in "".join(said)
    if word:
        assert said[-1].endswith(f": {word}; `run` goes on")
    # And on it goes: epochs that were there are not trained again.
    (quick.out / "slow").unlink()
    process = quick()
    process.join(60)
    assert process.exitcode == 0 and states(quick.experiment) == ["finished"] * 3
    for run, attempts in zip(quick.experiment.runs, (2, 2, 1), strict=True):
        assert run.folder.results("last")["epoch"] == 3
        # Beside what Ctrl-C made the stand-in for a tool say.
        log = (run.folder.path / "train.log").read_text().splitlines()
        assert [line for line in log if line.startswith("epoch")] == [
            "epoch 1", "epoch 2", "epoch 3",
        ]  # fmt: skip
        assert run.folder.noted["attempts"] == attempts


@pytest.mark.long
def test_forked_tools_end_with_a_killed_grid(quick):
    """Also though the process that forks them lives on while they do."""
    (quick.out / "slow").touch()
    process = quick(forks=True)
    wait_for(lambda: len(list(quick.out.glob("runs/*/*/waits"))) == 2, 400)
    pids = [int(p.read_text()) for p in quick.out.glob("runs/*/*/pid")]
    assert len(pids) == 2 and not any(map(is_gone, pids))
    process.kill()
    wait_for(lambda: all(map(is_gone, pids)), 5)
    wait_for(lambda: not session(process.pid), 60)


def test_a_process_ends_with_the_last_writer_of_a_pipe():
    """Before it asks for that, and behind; a fork of the writer keeps it alive."""
    fork = multiprocessing.get_context("fork")

    def work(reader, writer, late):
        writer.close()
        if late:
            time.sleep(0.5)
        processes.end_with_pipe(reader.fileno())
        time.sleep(60)

    for late in (False, True):
        reader, writer = fork.Pipe(duplex=False)
        process = fork.Process(target=work, args=(reader, writer, late))
        process.start()
        copy = os.dup(writer.fileno())
        if not late:
            time.sleep(0.3)
        writer.close()
        time.sleep(0.1)
        assert process.is_alive()
        os.close(copy)
        process.join(10)
        assert process.exitcode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def test_two_at_once_share_the_work(quick):
    """A second process leaves alone what the first works on, and takes the rest."""
    (quick.out / "slow").touch()
    first = quick()
    wait_for(lambda: len(list(quick.out.glob("runs/*/*/waits"))) == 2)
    (quick.out / "slow").unlink()
    second = quick()
    second.join(60)
    assert second.exitcode == 0 and first.exitcode is None
    assert states(quick.experiment) == ["running", "running", "finished"]
    attempts = [run.folder.noted["attempts"] for run in quick.experiment.runs]
    assert attempts == [1, 1, 1]


# --- to the bit, with the real tools


def grid_keys(data, **changes):
    return (
        dict(
            datasets=["synth_action"],
            methods=["erm", "mbcd"],
            targets=["sketch"],
            seeds=[0, 1],
            data_root=str(data),
            select=["source", "last"],
            options={
                "train_cfg.max_epochs": 2,
                "train_dataloader.batch_size": 4,
                "default_hooks.report.interval": 0.0,
            },
        )
        | changes
    )


def found_by(experiment):
    """Of every run and rule: metrics and counts, and the arrays of the predictions."""
    found = {}
    for run in experiment.runs:
        for rule in experiment.grid.select:
            results = run.folder.results(rule)
            facts = {k: results[k] for k in ("metrics", "N", "epoch", "seed")}
            key = (run.spec.name, run.spec.place, run.spec.seed, rule)
            found[key] = facts, run.folder.predictions(rule)
    return found


def same_to_the_bit(one, other):
    assert one.keys() == other.keys()
    for key, (facts, predictions) in one.items():
        assert json.dumps(facts) == json.dumps(other[key][0]), key
        same: Predictions = other[key][1]
        for name in ("sample_ids", "domains", "roles", "labels", "skipped"):
            np.testing.assert_array_equal(
                getattr(predictions, name), getattr(same, name)
            )
        assert predictions.logits.keys() == same.logits.keys()
        for head, logits in predictions.logits.items():
            assert logits.tobytes() == same.logits[head].tobytes(), (key, head)


@pytest.mark.long  # as above, with tools that train
def test_a_killed_tool_is_named_and_repeated(tiny_data, tmp_path):
    """One run of ERM, whose training is killed within its second epoch."""
    keys = grid_keys(tiny_data, methods=["erm"], seeds=[0])
    made = {}
    for name in ("whole", "killed"):
        made[name] = Experiment(Grid.of(keys), tmp_path / name, ROOT)
        made[name].resolve()
    machine, told = [Share(threads=1, workers=0)], []

    def report(run, what, line):
        told.append((what, line))

    def killing(line, log, changes):
        tool = forked(line, log, changes)
        folder = made["killed"].runs[0].folder
        if line[0].endswith("train.py"):
            wait_for(lambda: folder.progress.get("epoch") == 2, 200)
            os.kill(tool._process.pid, signal.SIGKILL)
        return tool

    run_here(made["killed"], made["killed"].runs, machine, report, killing)
    assert [what for what, _ in told] == ["started", "failed"]
    assert "killed by SIGKILL; was there too little memory?" in told[1][1]
    assert states(made["killed"]) == ["failed"]
    for experiment in made.values():
        run_here(experiment, experiment.runs, machine, report)
    same_to_the_bit(found_by(made["whole"]), found_by(made["killed"]))
    log = (made["killed"].runs[0].folder.path / "train.log").read_text()
    assert "resumed epoch: 1" in log  # not from the beginning


def start(verb, path, out, *options):
    """``tools/experiment.py`` in a session of its own."""
    line = [sys.executable, str(ROOT / "tools" / "experiment.py"), verb, str(path)]
    return subprocess.Popen(
        [*line, "--out", str(out), "--jobs", "2", *options],
        cwd=out.parent, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=open(out.parent / f"{out.name}.log", "ab"),  # noqa: SIM115
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def session(leader):
    """Processes of a session but its leader, ``{pid: parent}``, those that live."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found[int(stat.parent.name)] = int(fields[1])
    found.pop(leader, None)
    return found


def tools_of(leader):
    """The tools of a grid: what the process that forks them has forked."""
    alive = session(leader)
    children = [pid for pid, parent in alive.items() if parent == leader]
    return [pid for pid, parent in alive.items() if parent in children]


@pytest.fixture
def written(tiny_data, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_keys(tiny_data)))
    return path


@pytest.mark.long
@pytest.mark.parametrize("number", [1, 2])
def test_kills_at_random_moments(tmp_path, written, number):
    """Of the grid and of single tools, in trainings, validations and tests."""
    began = time.monotonic()
    whole = start("run", written, tmp_path / "whole")
    assert whole.wait(1500) == 0
    took = time.monotonic() - began
    moments = random.Random(number)
    out, killed = tmp_path / "killed", []
    for _ in range(5):
        process = start("resume", written, out)
        try:
            code = process.wait(moments.uniform(0.1, 0.6) * took)
            assert code in (0, 1)
        except subprocess.TimeoutExpired:
            tools = tools_of(process.pid)
            if tools and moments.random() < 0.5:
                os.kill(moments.choice(tools), signal.SIGKILL)
                killed.append("tool")
                process.wait(1500)
            else:
                process.kill()
                process.wait()
                killed.append("grid")
            wait_for(lambda tools=tools: all(map(is_gone, tools)), 10)
        # The process that forks tools does not look while it imports.
        wait_for(lambda pid=process.pid: not session(pid), 120)
    assert killed
    process = start("resume", written, out)
    assert process.wait(1500) == 0
    ends = [Experiment.open(tmp_path / name, ROOT) for name in ("whole", "killed")]
    assert states(ends[1]) == ["finished"] * 4
    same_to_the_bit(*map(found_by, ends))


@pytest.mark.long
def test_a_job_that_fails_is_named_and_leaves_the_others_alone(tmp_path, tiny_data):
    """Its learning rate makes it diverge."""
    path = tmp_path / "grid.yaml"
    variants = {"": {}, "wild": {"optim_wrapper.optimizer.lr": 1e30}}
    keys = grid_keys(tiny_data, methods=["erm"], seeds=[0], variants=variants)
    path.write_text(yaml.safe_dump(keys))
    process = start("run", path, tmp_path / "out")
    assert process.wait(900) == 1
    experiment = Experiment.open(tmp_path / "out", ROOT)
    by_name = {run.spec.name: run.folder for run in experiment.runs}
    assert by_name["erm"].state == "finished" and by_name["erm"].results("source")
    assert by_name["erm+wild"].state == "failed"
    said = (tmp_path / "out.log").read_text()
    assert "failed      synth_action erm+wild to-sketch, seed 0" in said
    assert "train: train.py: error: " in said and "not finite" in said
    assert "1 finished, 1 failed" in said and "`resume` repeats what failed." in said
    # `run` leaves it failed, and repeats nothing.
    before = by_name["erm+wild"].noted["attempts"]
    assert start("run", path, tmp_path / "out").wait(300) == 1
    assert by_name["erm+wild"].noted["attempts"] == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_stopping_the_real_thing(tmp_path, written, number, code, word):
    out = tmp_path / "out"
    process = start("run", written, out)
    wait_for(lambda: list(out.glob("runs/*/*/epoch_1.pth")), 600)
    assert tools_of(process.pid)
    os.killpg(process.pid, number)
    assert process.wait(60) == code
    wait_for(lambda: not session(process.pid), 10)
    experiment = Experiment.open(out, ROOT)
    assert "failed" not in states(experiment) and "interrupted" in states(experiment)
    said = (tmp_path / "out.log").read_text().splitlines()
    assert said[-1] == f"experiment.py: {word}; `run --out {out}` goes on from here"
    assert not any("Traceback" in line for line in said)
