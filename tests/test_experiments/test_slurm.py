"""A grid through a real Slurm: Debian's slurm-wlm and munge, started on this machine.

Each job imports MMAction2 and starts a training and a test that do so again: half a
minute on an idle machine, so minutes for all.
"""

import os
import re
import subprocess
import time

import numpy as np
import pytest
from rich.console import Console

from helpers import slurm_cluster
from mmaction_mbcd.experiments import slurm, status
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share
from mmaction_mbcd.experiments.local import run_here
from tests_support import load_tool

LACKS = slurm_cluster.lacks()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(LACKS), reason=LACKS)]

PATIENCE = 900  # s; for machines that do something else as well
SMALL = {
    "train_cfg.max_epochs": 1,
    "train_dataloader.batch_size": 4,
    "train_dataloader.num_workers": 0,
    "train_dataloader.persistent_workers": False,
}

tool = load_tool("experiment")


@pytest.fixture(scope="module")
def slurm_conf(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as config:
        yield config


@pytest.fixture(autouse=True)
def _reach(slurm_conf, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    # What differs between jobs of one and of two cores is not the result, but it
    # should be the job's share that decides.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_for(lambda: not said("squeue", "-h"), 120)


def said(*command):
    """What one of Slurm's programs prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, said("squeue", "-a")
        time.sleep(0.5)
    return found


@pytest.fixture
def make(repo, tiny_data, tmp_path):
    """An experiment in a folder of its own, written."""

    def make(name="out", options=(), **keys):
        known = dict(
            datasets=["synth_action"],
            methods=["erm"],
            targets=["sketch"],
            data_root=str(tiny_data),
            select=["source"],
            options=SMALL | dict(options),
        )
        experiment = Experiment(Grid.of(known | keys), tmp_path / name, repo)
        experiment.resolve()
        experiment.write()
        return experiment

    return make


def ended(experiment):
    """The states, once Slurm has no more to do."""
    assert slurm.update(experiment) == ""
    runs = experiment.runs
    return None if any(r.folder.in_queue for r in runs) else status.counts(runs)


def in_state(experiment, state):
    slurm.update(experiment)
    return all(run.folder.state == state for run in experiment.runs)


def saved(run):
    """Whether a training could be continued."""
    return list(run.folder.path.glob("timed_iter_*.pth"))


def assert_same_results(got, expected):
    """Digit for digit, and every logit to the bit."""
    timed = re.compile("time|seconds|date|checkpoint")
    for a, b in zip(got.runs, expected.runs, strict=True):
        one, other = a.folder.results("source"), b.folder.results("source")
        assert one and one.keys() == other.keys()
        for key in one:
            if not timed.search(key):
                assert one[key] == other[key], key
        one, other = a.folder.predictions("source"), b.folder.predictions("source")
        assert one.logits.keys() == other.logits.keys()
        for head in one.logits:
            np.testing.assert_array_equal(one.logits[head], other.logits[head])


def locally(experiment):
    """The same grid by the local executor."""
    failures = []
    run_here(
        experiment,
        experiment.runs,
        [Share(threads=1, workers=1)],
        lambda run, what, line: failures.append(line) if what == "failed" else None,
    )
    assert failures == []
    return experiment


def test_a_grid_gives_what_it_gives_here(make, tmp_path, capsys):
    """Through the command line; called again it submits nothing."""
    experiment = make(methods=["erm", "mbcd"])
    line = ["run", "--out", str(experiment.out), "--slurm", "--time", "60"]
    line += ["--gpus-per-job", "0", "--cpus", "1", "--partition", "low"]
    assert tool.main(line) == 0
    assert "2 runs submitted, Slurm jobs" in capsys.readouterr().out
    assert tool.main(line) == 0
    text = capsys.readouterr().out
    assert "0 runs submitted" in text and "queued" in text
    assert len(said("squeue", "-h", "-r").splitlines()) == 2
    assert wait_for(lambda: ended(experiment)) == {"finished": 2}
    assert tool.main(line) == 0
    assert "0 runs submitted" in capsys.readouterr().out
    assert [run.folder.noted["attempts"] for run in experiment.runs] == [1, 1]
    assert_same_results(experiment, locally(make("here", methods=["erm", "mbcd"])))


def test_a_preempted_run_goes_on_to_the_same_bits(make):
    # A checkpoint after each step, and enough of them to be caught in the middle.
    options = {"train_cfg.max_epochs": 12, "default_hooks.checkpoint.minutes": 0}
    experiment = make(options=options)
    (run,) = experiment.runs
    request = slurm.Request(60, partition="low", gpus=0, cpus=2)
    (job,) = slurm.submit(experiment, [run], request)
    wait_for(lambda: saved(run))
    said("sbatch", "-p", "high", "-c2", "-o", "/dev/null", "--wrap", "sleep 3")
    wait_for(lambda: "Restarts=1" in said("scontrol", "show", "job", job), 120)
    wait_for(lambda: in_state(experiment, "queued"), 60)
    assert status.at(run).startswith(f"job {job}, ")
    assert not run.folder.results("source")
    assert wait_for(lambda: ended(experiment)) == {"finished": 1}
    assert run.folder.noted["attempts"] == 2
    log = (run.folder.path / "train.log").read_text()
    (start,) = re.findall(r"resumed epoch: \d+, iter: (\d+)", log)
    assert int(start) > 0
    assert_same_results(experiment, locally(make("here", options=options)))


def test_a_time_limit_requeues_what_gets_on(make):
    """The warning as Slurm sends it, once by hand and once with nothing saved."""
    options = {"train_cfg.max_epochs": 12, "default_hooks.checkpoint.minutes": 0}
    experiment = make(options=options)
    (run,) = experiment.runs
    request = slurm.Request(4, gpus=0, cpus=2)  # all of 4 minutes are near their end
    (job,) = slurm.submit(experiment, [run], request)
    wait_for(lambda: saved(run))
    said("scancel", "--signal=USR2", job)
    wait_for(lambda: "Restarts=1" in said("scontrol", "show", "job", job), 120)
    # Back in the queue, and begun again: nothing new is saved by then.
    wait_for(lambda: run.folder.noted["attempts"] == 2)
    wait_for(lambda: run.folder.noted.get("phase") == "train")
    said("scancel", "--signal=USR2", job)
    assert wait_for(lambda: ended(experiment)) == {"failed": 1}
    assert "the time limit of 4 minutes came before anything" in run.folder.error()


def test_a_job_that_slurm_ends_at_its_limit(make):
    """A limit that passes before the training has begun to save."""
    options = {"train_cfg.max_epochs": 100_000, "train_cfg.val_interval": 100_000}
    options["default_hooks.checkpoint.interval"] = 100_000
    experiment = make(options=options)
    (run,) = experiment.runs
    slurm.submit(experiment, [run], slurm.Request(2, gpus=0, cpus=2))
    assert wait_for(lambda: ended(experiment)) == {"failed": 1}
    assert "time limit" in run.folder.error().lower()


def test_a_cancelled_run_is_shown_and_resumed(make, capsys):
    experiment = make(seeds=[0, 1])
    request = slurm.Request(60, gpus=0, cpus=2)  # one at a time: the node has two
    (job,) = slurm.submit(experiment, experiment.runs, request)
    first, second = experiment.runs
    wait_for(lambda: slurm.update(experiment) or first.folder.state == "running")
    assert second.folder.state == "queued"
    assert re.fullmatch(
        rf"job {job}_1, waiting: (Resources|Priority)", status.at(second)
    )
    said("scancel", job)
    assert wait_for(lambda: ended(experiment)) == {"interrupted": 2}
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(status.table(experiment))
    shown = console.export_text()
    assert f"Slurm job {job}_0: cancelled" in shown
    assert f"Slurm job {job}_1: cancelled" in shown
    line = ["resume", "--out", str(experiment.out), "--slurm", "--time", "60"]
    assert tool.main([*line, "--gpus-per-job", "0", "--cpus", "1"]) == 0
    assert "2 runs submitted" in capsys.readouterr().out
    assert wait_for(lambda: ended(experiment)) == {"finished": 2}


def test_two_gpus_are_two_processes(make):
    """GPUs as far as Slurm knows; torch finds none and uses gloo."""
    experiment = make()
    (run,) = experiment.runs
    slurm.submit(experiment, [run], slurm.Request(60, gpus=2, cpus=2))
    assert wait_for(lambda: ended(experiment)) == {"finished": 1}
    log = (run.folder.path / "train.log").read_text()
    assert re.search(r"Epoch\(train\) +\[1\]\[3/3\]", log)  # 24 clips, 2 times 4


def test_runs_wait_in_slurm_for_those_that_choose_their_epoch(make):
    experiment = make(select=["source", "leave_one_source_out"])
    request = slurm.Request(60, gpus=0, cpus=2)
    first, second = slurm.submit(experiment, experiment.runs, request)
    slurm.update(experiment)
    assert f"afterany:{first}" in said("squeue", "-h", "-j", second, "-o", "%E")
    assert status.at(experiment.runs[-1]) == f"job {second}, waiting: Dependency"
    said("scancel", first, second)
    assert wait_for(lambda: ended(experiment)) == {"interrupted": 3}


def test_what_slurm_refuses(make, capsys):
    experiment = make()
    line = ["run", "--out", str(experiment.out), "--slurm", "--time", "60"]
    with pytest.raises(SystemExit):
        tool.main([*line, "--gpus-per-job", "0", "--partition", "none"])
    err = capsys.readouterr().err
    assert "Slurm refused: sbatch: error: invalid partition specified: none" in err
    assert in_state(experiment, "waiting")


def test_a_job_finds_its_run_busy(make):
    experiment = make()
    (run,) = experiment.runs
    with run.folder.held():
        run.folder.note(state="running")
        slurm.submit(experiment, [run], slurm.Request(60, gpus=0, cpus=2))
        run.folder.note(state="running")
        wait_for(lambda: ended(experiment))
        assert run.folder.state == "running"


def test_lines_of_commands_do_the_same(make, capsys):
    """As another queue calls them; here xargs, two at a time."""
    experiment = make(methods=["erm", "mbcd"])
    tool.main(["commands", "--out", str(experiment.out), "--cpus", "1"])
    lines = capsys.readouterr().out
    call = ["xargs", "-P", "2", "-I{}", "sh", "-c", "{}"]
    subprocess.run(call, input=lines, text=True, check=True)
    assert status.counts(experiment.runs) == {"finished": 2}
    assert_same_results(experiment, locally(make("here", methods=["erm", "mbcd"])))
