"""Several runs at a time on one machine: shares, order, failures."""

import errno
import os
import threading
import time

import pytest

from helpers.fake_tools import FakeTools
from mmaction_mbcd.experiments import job as job_module
from mmaction_mbcd.experiments import local
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share
from mmaction_mbcd.experiments.local import run_here, shares
from mmaction_mbcd.experiments.run_folder import RunFolder
from tests_support import ROOT

CONFIGS = ROOT / "configs" / "mbcd"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(job_module, "_LOOK", 0.01)
    monkeypatch.setattr(job_module, "_SAME_SIGNAL", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# --- shares


@pytest.mark.parametrize(
    ("asked", "count", "threads", "workers"),
    [
        # By hand: one job per two cores, half of each for its training.
        (dict(cores=1), 1, 1, 0),
        (dict(cores=2), 1, 1, 1),
        (dict(cores=3), 1, 1, 2),
        (dict(cores=8), 4, 1, 1),
        (dict(cores=64), 32, 1, 1),
        (dict(cores=8, jobs=1), 1, 4, 4),
        (dict(cores=8, jobs=2), 2, 2, 2),
        (dict(cores=8, jobs=3), 3, 1, 1),
        (dict(cores=2, jobs=2), 2, 1, 0),
        (dict(cores=2, jobs=5), 5, 1, 0),
    ],
)
def test_shares_of_cores(asked, count, threads, workers):
    found = shares(gpus=[], **asked)
    assert found == [Share(threads, workers, None, 1)] * count


@pytest.mark.parametrize(
    ("asked", "devices", "threads", "workers"),
    [
        (dict(cores=8, gpus=["0"]), [("0",)], 1, 7),
        (dict(cores=64, gpus=["0"]), [("0",)], 1, 16),
        (dict(cores=8, gpus=["0", "1"]), [("0",), ("1",)], 1, 3),
        (dict(cores=8, gpus="0123"), [("0",), ("1",), ("2",), ("3",)], 1, 1),
        # A job of two processes, each with half of the job's cores.
        (dict(cores=16, gpus="0123", per_job=2), [("0", "1"), ("2", "3")], 1, 3),
        (dict(cores=7, gpus="01", per_job=2), [("0", "1")], 1, 2),
        # The third GPU is none's.
        (dict(cores=8, gpus="012", per_job=2), [("0", "1")], 1, 3),
        # Two jobs on a GPU.
        (dict(cores=8, gpus="01", jobs=4), [("0",), ("1",), ("0",), ("1",)], 1, 1),
        # A GPU does not wait for a training that reads its data itself.
        (dict(cores=2, gpus="01"), [("0",), ("1",)], 1, 1),
    ],
)
def test_shares_of_gpus(asked, devices, threads, workers):
    asked = asked | dict(gpus=list(asked["gpus"]))
    found = shares(**asked)
    assert [share.devices for share in found] == devices
    assert {(share.threads, share.workers) for share in found} == {(threads, workers)}
    assert {share.processes for share in found} == {asked.get("per_job", 1)}


@pytest.mark.parametrize("gpus", [[], ["0"], ["0", "1", "2", "3"]])
@pytest.mark.parametrize("per_job", [1, 2])
def test_never_more_than_the_cores(gpus, per_job):
    """But for a job that cannot be smaller, and a GPU that needs a worker."""
    if per_job > max(1, len(gpus)):
        return
    for cores in range(1, 40):
        for jobs in (None, 1, 2, 3, 7):
            found = shares(jobs, gpus, per_job, cores)
            busy = sum(s.processes * (s.threads + s.workers) for s in found)
            least = sum(s.processes * (2 if gpus else 1) for s in found)
            assert busy <= max(cores, least), (cores, jobs, found)
            assert all(s.threads >= 1 and s.workers >= 0 for s in found)


@pytest.mark.parametrize(
    ("value", "threads", "workers"),
    [("3", None, 5), ("8", None, 0), ("20", None, 0), ("2,1", None, 6), ("x", 4, 4)],
)
def test_threads_of_the_user(monkeypatch, value, threads, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert shares(1, [], cores=8) == [Share(threads, workers, None, 1)]


def test_jobs_that_see_no_gpu(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 4)
    (share, other) = shares(2, per_job=0, cores=8)
    assert share == other == Share(2, 2, (), 1)
    assert share.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_what_this_process_may_use(monkeypatch):
    monkeypatch.setattr(local, "usable_cores", lambda: 6)
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 0)
    assert len(shares()) == 3
    # torch counts what the variable leaves; a job's must be among these.
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 2)
    assert [s.devices for s in shares()] == [("0",), ("1",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7")
    assert [s.devices for s in shares()] == [("5",), ("GPU-7",)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(jobs=0), "jobs are 1 or more, got 0"),
        (dict(per_job=-1), "or 0 for the CPU; got -1"),
        (dict(gpus=["3"], per_job=0), "or 0 for the CPU; got 0 of the GPUs 3"),
        (dict(gpus=["0"], per_job=2), "2 GPUs per job were asked for, there are 1"),
        (dict(gpus=[], per_job=2), "2 GPUs per job were asked for, there are 0"),
    ],
)
def test_wrong_shares(asked, message):
    with pytest.raises(ValueError, match=message):
        shares(cores=4, **asked)


# --- runs


@pytest.fixture
def made(tmp_path):
    """An experiment whose runs were not resolved: nothing of theirs is read."""

    def make(**keys):
        base = dict(datasets=["hac"], methods=["erm"], targets=["human"])
        grid = Grid.of(base | keys)
        experiment = Experiment(grid, tmp_path / "out", ROOT)
        experiment.runs = [
            experiment._planned(spec, f"{i:08}")
            for i, spec in enumerate(grid.specs(CONFIGS))
        ]
        return experiment

    return make


class Told:
    """What was reported."""

    def __init__(self):
        self.lines = []

    def __call__(self, run, what, line):
        self.lines.append((run.folder.path.name.partition("_0")[0], what, line))

    def of(self, what):
        return [(name, line) for name, told, line in self.lines if told == what]


def work(experiment, tools, jobs=1, runs=None):
    told = Told()
    run_here(experiment, runs or experiment.runs, [Share()] * jobs, told, tools)
    return told


def test_one_after_the_other(made):
    experiment, tools = made(seeds=[0, 1]), FakeTools()
    told = work(experiment, tools)
    assert [(what, name) for name, what, _ in told.lines] == [
        ("started", "erm_to-human_seed0"), ("finished", "erm_to-human_seed0"),
        ("started", "erm_to-human_seed1"), ("finished", "erm_to-human_seed1"),
    ]  # fmt: skip
    assert tools.tools == ["train", "test", "test"] * 2
    known = experiment.runs[1].folder.known
    assert known["digest"] == "00000001" and known["spec"]["seed"] == 1
    (start,) = experiment.runs[0].folder.noted["starts"]
    assert start["cores"] == os.cpu_count() and "torch" in start["versions"]


def test_as_many_at_a_time_as_there_are_shares(made):
    running, most, lock = set(), [], threading.Lock()

    def launched(line):
        name = line[line.index("--work-dir") + 1]
        with lock:
            running.add(name)
            most.append(len(running))
        time.sleep(0.1)
        with lock:
            running.discard(name)

    experiment = made(seeds=list(range(6)))
    told = work(experiment, FakeTools(on_launch=launched), jobs=3)
    assert max(most) == 3 and len(told.of("finished")) == 6


def test_each_job_has_a_share_of_its_own(made):
    tools = FakeTools(on_launch=lambda line: time.sleep(0.05))
    machine = [Share(threads=1, devices=("0",)), Share(threads=1, devices=("1",))]
    run_here(
        made(seeds=[0, 1, 2, 3]), made(seeds=[0, 1, 2, 3]).runs, machine, Told(), tools
    )
    used = {each["CUDA_VISIBLE_DEVICES"] for each in tools.environments}
    assert used == {"0", "1"}


def test_a_failing_job_leaves_the_others_alone_and_is_named(made):
    experiment = made(methods=["erm", "mbcd"], seeds=[0, 1])
    tools = FakeTools(fails={"mbcd_to-human_seed0": ("ValueError: no luck\n", 1)})
    told = work(experiment, tools, jobs=2)
    ((name, line),) = told.of("failed")
    assert name == "mbcd_to-human_seed0"
    assert line.startswith("train: ValueError: no luck (exit code 1; ")
    assert sorted(name for name, _ in told.of("finished")) == [
        "erm_to-human_seed0", "erm_to-human_seed1", "mbcd_to-human_seed1",
    ]  # fmt: skip
    states = [run.folder.state for run in experiment.runs]
    assert states == ["finished", "finished", "failed", "finished"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("surprise")]
)
def test_an_error_of_our_own_is_one_runs(made, error):
    def launched(line):
        if "seed0" in line[line.index("--work-dir") + 1]:
            raise error

    experiment = made(seeds=[0, 1])
    told = work(experiment, FakeTools(on_launch=launched))
    ((name, line),) = told.of("failed")
    assert name.endswith("seed0") and line == f"{type(error).__name__}: {error}"
    assert [r.folder.state for r in experiment.runs] == ["failed", "finished"]


def test_a_full_disk_from_the_beginning(made, monkeypatch):
    """Nothing can be noted of it; the report says it."""
    real = RunFolder.note

    def full(self, **facts):
        if "seed0" in self.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, **facts)

    monkeypatch.setattr(RunFolder, "note", full)
    experiment = made(seeds=[0, 1])
    told = work(experiment, FakeTools())
    ((name, line),) = told.of("failed")
    assert name.endswith("seed0") and "No space left" in line
    assert len(told.of("finished")) == 1


def test_a_run_that_another_process_works_on(made):
    experiment = made(seeds=[0, 1])
    busy = experiment.runs[0].folder
    with busy.held():
        busy.note(state="running", trained=True)
        before = busy.noted
        told = work(experiment, FakeTools())
        ((name, line),) = told.of("busy")
        assert name.endswith("seed0") and f"process {os.getpid()}" in line
        assert busy.noted == before  # nothing of the other's notes is lost
    assert len(told.of("finished")) == 1


def test_runs_wait_for_those_that_choose_their_epoch(made):
    """Each of the three waits for two; they start in the order of the list."""
    select = ["source", "leave_one_source_out"]
    experiment = made(targets=["human", "animal"], select=select)
    runs = experiment.runs
    # human: animal-cartoon, cartoon-animal; animal: human-cartoon, cartoon-human.
    assert [r.spec.purpose for r in runs] == ["leave_one_source_out"] * 4 + ["grid"] * 2
    own = runs[4]
    assert [r.spec.place for r in experiment.left_out(own)] == [
        "cartoon-to-animal", "animal-to-cartoon",
    ]  # fmt: skip
    tools = FakeTools(on_launch=lambda line: time.sleep(0.05))
    backwards = list(reversed(runs))
    told = work(experiment, tools, jobs=2, runs=backwards)
    events = [(name, what) for name, what, _ in told.lines]
    for run in runs[4:]:
        name = run.folder.path.name.partition("_0")[0]
        begun = events.index((name, "started"))
        for each in experiment.left_out(run):
            other = each.folder.path.name.partition("_0")[0]
            assert events.index((other, "finished")) < begun
    assert {r.folder.results("leave_one_source_out")["epoch"] for r in runs[4:]} == {1}


def test_a_run_whose_choosers_fail_goes_on_without_them(made):
    experiment = made(select=["source", "leave_one_source_out"])
    tools = FakeTools(fails={"leave_one_source_out_erm_animal": ("ValueError: x\n", 1)})
    told = work(experiment, tools)
    assert len(told.of("failed")) == 1 and len(told.of("finished")) == 2
    own = experiment.runs[-1]
    assert own.folder.results("source")["epoch"] == 2
    assert not experiment.job(own).is_done()
    tools.fails = {}
    work(experiment, tools)
    assert experiment.job(own).is_done()
    assert own.folder.results("leave_one_source_out")["epoch"] == 1


def test_an_interruption_ends_the_running_tools(made):
    """What waits does not begin; what runs can be continued."""
    experiment = made(seeds=[0, 1, 2])
    tools = FakeTools(hangs=("seed0", "seed1"))
    told = Told()

    def report(run, what, line):
        told(run, what, line)

    def interrupts(*args, **kwargs):
        if len(tools.lines) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = local.wait
    local.wait, before = interrupts, local.wait
    try:
        with pytest.raises(KeyboardInterrupt):
            run_here(experiment, experiment.runs, [Share()] * 2, report, tools)
    finally:
        local.wait = before
    assert sorted(name[-1] for name, _ in told.of("interrupted")) == ["0", "1"]
    states = [run.folder.state for run in experiment.runs]
    assert states == ["interrupted", "interrupted", "waiting"]
    tools.hangs = ()
    assert len(work(experiment, tools, jobs=2).of("finished")) == 3
