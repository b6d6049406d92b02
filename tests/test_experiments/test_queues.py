"""Runs that a queue does: what Slurm is told and says, and command lines for others.

A real Slurm is in test_slurm.py; here its programs are scripts that write down what
they were called with, and answer as Slurm's do.
"""

import errno
import fcntl
import json
import os
import shlex
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import submitit
from rich.console import Console

from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.experiments import slurm, status
from mmaction_mbcd.experiments.experiment import Experiment
from mmaction_mbcd.experiments.grid import Grid
from mmaction_mbcd.experiments.job import Share, Stopped, spawned
from mmaction_mbcd.experiments.run_folder import InQueue, RunFolder
from mmaction_mbcd.experiments.single import find, in_order, name_of, work
from tests_support import load_tool

tool = load_tool("experiment")


def planned(repo, out, **keys):
    """An experiment whose runs are written down, their configs not resolved."""
    data = out.parent / "data"
    data.mkdir(exist_ok=True)
    described = dict(classes=["wave"], domains=["studio", "street", "sketch"])
    (data / "synth.json").write_text(json.dumps(described))
    grid = dict(datasets=["synth_action"], methods=["erm", "mbcd"], targets=["sketch"])
    grid |= dict(data_root=str(data)) | keys
    experiment = Experiment(Grid.of(grid), out, repo)
    for number, spec in enumerate(experiment.grid.specs(repo / "configs" / "mbcd")):
        digest = f"{number:064x}"
        experiment.runs.append(experiment._planned(spec, digest))
        experiment.runs[-1].folder.path.mkdir(parents=True)
    return experiment


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts a script on the PATH, alone with what a shell needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name, text):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    # Where Slurm is installed the real ones must not answer.
    for name in ("srun", "sbatch", "squeue", "sacct"):
        add(name, f"echo '{name}: error: not expected' >&2; exit 1")
    return add


@pytest.fixture
def sbatch(programs, tmp_path):
    """Numbers jobs from 41; what it was given, and the SLURM_* it saw."""
    programs(
        "sbatch",
        f"n=$(ls {tmp_path}/job_* 2>/dev/null | wc -l); n=$((n + 41))\n"
        f'cp "$1" {tmp_path}/job_$n; env | grep ^SLURM_ > {tmp_path}/seen_$n\n'
        'echo "Submitted batch job $n"',
    )

    def script(number):
        lines = (tmp_path / f"job_{number}").read_text().splitlines()
        given = [x.removeprefix("#SBATCH --") for x in lines if x.startswith("#SBATCH")]
        return dict(x.partition("=")[::2] for x in given), lines

    return script


REQUEST = slurm.Request(
    minutes=90,
    partition="gpu",
    account="lab",
    qos="long",
    gpus=2,
    memory="32G",
    at_a_time=5,
    more={"constraint": "a100", "nice": "10", "exclusive": True},
)


def test_every_wish_reaches_sbatch(repo, tmp_path, sbatch):
    experiment = planned(repo, tmp_path / "out", seeds=[0, 1, 2])
    assert slurm.submit(experiment, experiment.runs, REQUEST) == ["41"]
    given, lines = sbatch(41)
    out = f"{tmp_path}/out/slurm/%A_%a_0_log"
    assert given == {
        "array": "0-5%5",
        "time": "90",
        "partition": "gpu",
        "account": "lab",
        "qos": "long",
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "2",
        "cpus-per-task": "8",
        "mem": "32G",
        "constraint": "a100",
        "nice": "10",
        "exclusive": "",
        "requeue": "",
        "signal": "USR2@120",
        "job-name": "mbcd",
        "open-mode": "append",
        "output": f"{out}.out",
        "error": f"{out}.err",
    }
    srun = next(line for line in lines if line.startswith("srun"))
    # Slurm from 22.05 on gives a step one core unless it is told again.
    assert "--cpus-per-task=8" in shlex.split(srun)
    assert f'export PYTHONPATH={repo}"${{PYTHONPATH:+:$PYTHONPATH}}"' in lines


@pytest.mark.parametrize(
    "request_, expected",
    [
        (slurm.Request(600, gpus=0), {"cpus_per_task": 2, "signal_delay_s": 120}),
        (slurm.Request(600, gpus=1), {"cpus_per_task": 4, "gpus_per_node": 1}),
        (slurm.Request(600, gpus=1, cpus=7), {"cpus_per_task": 7}),
        (slurm.Request(4), {"signal_delay_s": 60}),  # a quarter of a short limit
        (
            slurm.Request(4, more={"no-requeue": True}),
            {"additional_parameters": {"no-requeue": True}},
        ),
    ],
)
def test_what_is_asked_for_by_default(request_, expected):
    found = request_.parameters()
    assert {key: found[key] for key in expected} == expected
    assert ("gpus_per_node" in found) == (request_.gpus > 0)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(more={"time": "5"}), "--sbatch time is set here already; say --time"),
        (dict(more={"open_mode": "truncate"}), "--sbatch open_mode is set here"),
        (dict(gpus=-1), "gpus is 0 or more, got -1"),
        (dict(at_a_time=0), "at_a_time is 1 or more, got 0"),
    ],
)
def test_wishes_that_cannot_be(wrong, said):
    with pytest.raises(UsageError, match=said):
        slurm.Request(60, **wrong)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("90", 90),
        ("90:30", 91),
        ("1:30:00", 90),
        ("0:00:30", 1),
        ("2-12", 3600),
        ("2-12:30", 3630),
        ("1-0:0:1", 1441),
    ],
)
def test_time_limits_are_read_as_sbatch_does(text, expected):
    assert slurm.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "2-"])
def test_what_is_not_a_time_limit(text):
    with pytest.raises(ValueError, match="a time limit is minutes"):
        slurm.minutes(text)


def test_each_run_knows_its_job_and_each_job_its_run(repo, tmp_path, sbatch):
    experiment = planned(repo, tmp_path / "out", seeds=[0, 1])
    experiment.runs[2].folder.note(state="failed", error="as before")
    slurm.submit(experiment, experiment.runs[1:], REQUEST)
    jobs = [run.folder.queue.get("job") for run in experiment.runs]
    assert jobs == [None, "41_0", "41_1", "41_2"]
    assert experiment.runs[2].folder.noted["state"] == "waiting"
    folder = tmp_path / "out" / "slurm"
    for run in experiment.runs[1:]:
        job = run.folder.queue["job"]
        kept = submitit.core.utils.DelayedSubmission.load(
            folder / f"{job}_submitted.pkl"
        )
        assert kept.function.name == name_of(run)
        assert kept.function.out == tmp_path / "out"
        assert run.folder.queue["log"] == str(folder / f"{job}_0_log.err")
        assert run.folder.spec == run.spec


def test_one_run_is_no_array(repo, tmp_path, sbatch):
    experiment = planned(repo, tmp_path / "out")
    assert slurm.submit(experiment, experiment.runs[:1], REQUEST) == ["41"]
    assert experiment.runs[0].folder.queue["job"] == "41"
    assert "array" not in sbatch(41)[0]


def test_runs_wait_for_those_that_choose_their_epoch(repo, tmp_path, sbatch):
    keys = dict(methods=["erm"], select=["source", "leave_one_source_out"])
    experiment = planned(repo, tmp_path / "out", **keys)
    first, second = in_order(experiment, experiment.runs)
    assert [run.spec.purpose for run in first] == ["leave_one_source_out"] * 2
    assert slurm.submit(experiment, experiment.runs, REQUEST) == ["41", "42"]
    assert "dependency" not in sbatch(41)[0]
    assert sbatch(42)[0]["dependency"] == "afterany:41"
    # Those that are in the queue already are waited for as well.
    first[1].folder.enqueue("7_3", tmp_path)
    slurm.submit(experiment, [first[0], *second], REQUEST)
    assert sbatch(44)[0]["dependency"] == "afterany:43:7"


def test_more_than_an_array_holds(repo, tmp_path, sbatch, monkeypatch):
    monkeypatch.setattr(slurm, "_ARRAY", 3)
    experiment = planned(repo, tmp_path / "out", seeds=[0, 1])
    assert slurm.submit(experiment, experiment.runs, REQUEST) == ["41", "42"]
    jobs = [run.folder.queue["job"] for run in experiment.runs]
    assert jobs == ["41_0", "41_1", "41_2", "42"]


def test_an_interactive_job_hands_nothing_down(repo, tmp_path, sbatch, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    experiment = planned(repo, tmp_path / "out")
    slurm.submit(experiment, experiment.runs, REQUEST)
    assert (tmp_path / "seen_41").read_text() == "SLURM_CONF=/etc/slurm.conf\n"
    assert os.environ["SLURM_MEM_PER_CPU"] == "100"


def test_what_sbatch_refuses(repo, tmp_path, programs):
    programs("sbatch", "echo 'sbatch: error: invalid partition specified: gpu\n"
             "sbatch: error: Batch job submission failed' >&2; exit 1")  # fmt: skip
    experiment = planned(repo, tmp_path / "out")
    said = "Slurm refused: sbatch: error: invalid partition specified: gpu$"
    with pytest.raises(UsageError, match=said):
        slurm.submit(experiment, experiment.runs, REQUEST)
    assert not experiment.runs[0].folder.queue


def test_where_there_is_no_slurm(repo, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    experiment = planned(repo, tmp_path / "out")
    with pytest.raises(UsageError, match="Slurm is not on this machine.*`commands`"):
        slurm.submit(experiment, experiment.runs, REQUEST)


# ------------------------------------------------------------------------ within a job


@pytest.mark.parametrize(
    "given, expected",
    [
        # 8 cores and no GPU: half of them compute, half read.
        ({"SLURM_CPUS_PER_TASK": "8"}, Share(4, 4, None, 1)),
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "1"}, Share(1, 7, None, 1)),
        # (8 - 1) // 2 data workers for each of two processes
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"}, Share(1, 3, None, 2)),
    ],
)
def test_a_jobs_share(given, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert slurm.share() == expected


@pytest.fixture
def queued(repo, tmp_path, monkeypatch):
    """A run, its call, and what it does instead of training."""
    experiment = planned(repo, tmp_path / "out")
    experiment.write()
    run = Experiment.open(experiment.out, repo).runs[1]
    call = slurm.QueuedRun(experiment.out, repo, name_of(run), minutes=60)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "5")

    def does(work):
        monkeypatch.setattr(slurm, "work", work)
        call()

    return run.folder, call, does


def test_a_job_does_its_run_with_its_share(queued, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    folder, _, does = queued
    seen = []
    does(lambda _, run, share, stop: seen.append((run.folder.path, share)))
    assert seen == [(folder.path, slurm.share())]
    assert folder.queue["job"] == "5"  # also if the submitter died
    assert folder.queue["log"].endswith("5_0_log.err")


def test_a_job_that_is_ended(queued):
    def work(*_, stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        raise Stopped

    _, _, does = queued
    with pytest.raises(SystemExit) as ended:
        does(work)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_job_that_is_warned_stops_before_it_is_requeued(queued):
    """As submitit does: from a signal's handler, while the call goes on."""
    folder, call, does = queued
    order = []

    def warned(*_):
        order.append(call.checkpoint().function.name)
        raise SystemExit(255)

    def work(*_, stop):
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.wait(10)
        time.sleep(0.3)  # the tool ends
        order.append("stopped")
        raise Stopped

    before = signal.signal(signal.SIGUSR2, warned)
    with pytest.raises(SystemExit):
        does(work)
    signal.signal(signal.SIGUSR2, before)
    assert order == ["stopped", call.name]


def test_requeued_if_something_was_saved_or_the_limit_is_far(queued, monkeypatch):
    folder, call, does = queued
    clock = [1000.0]
    monkeypatch.setattr(slurm.time, "time", lambda: clock[0])
    (folder.path / "epoch_1.pth").write_text("")
    does(lambda *_, stop: None)
    clock[0] += 60 * 60 - 241
    again = call.checkpoint()  # pre-empted: Slurm wants its place, not its end
    fresh = slurm.QueuedRun(call.out, call.repo, call.name, 60)
    assert vars(again.function) | {"_began": 0} == vars(fresh) | {"_began": 0}
    clock[0] += 2
    assert call.checkpoint() is None
    (folder.path / "timed_iter_7.pth").write_text("")
    assert call.checkpoint() is not None


def test_a_job_says_why_it_cannot_begin(queued):
    folder, _, does = queued

    def work(*_, stop):
        raise UsageError("planned with another config")

    with pytest.raises(UsageError):
        does(work)
    assert (folder.state, folder.error()) == ("failed", "planned with another config")


def test_a_limit_that_is_too_short(queued):
    folder, _, does = queued

    def refuse(*_):
        raise slurm.NotRequeued("checkpoint function returned None")

    def work(*_, stop):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.5)

    before = signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(slurm.NotRequeued):
        does(work)
    signal.signal(signal.SIGUSR2, before)
    assert folder.state == "failed"
    assert folder.error() == (
        "the time limit of 60 minutes came before anything was saved; ask for more "
        "with --time"
    )


class Tool:
    """One that has ended."""

    def __init__(self, code):
        self.code = code

    def exitcode(self):
        return self.code

    def terminate(self):
        pass


def test_tools_leave_a_batch_systems_warning_to_their_job(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print('alive')\n"
    )
    running = spawned([str(script)], tmp_path / "log", {})
    while running.exitcode() is None:
        time.sleep(0.02)
    assert (running.exitcode(), (tmp_path / "log").read_text()) == (0, "alive\n")


# ------------------------------------------------------------------------ asking Slurm


def answers(programs, squeue="", sacct=None):
    programs("squeue", f"cat <<'END'\n{squeue}\nEND")
    if sacct is not None:
        programs("sacct", f"cat <<'END'\n{sacct}\nEND")


def test_where_slurm_has_a_run(repo, tmp_path, programs):
    answers(programs, "5_0|PENDING|Priority\n5_1|RUNNING|None\n5_2|RUNNING|None")
    experiment = planned(repo, tmp_path / "out", seeds=[0, 1])
    for number, run in enumerate(experiment.runs[:3]):
        run.folder.enqueue(f"5_{number}", tmp_path / "log")
    experiment.runs[2].folder.note(state="running", phase="train")
    assert slurm.update(experiment) == ""
    folders = [run.folder for run in experiment.runs]
    assert [folder.in_queue for folder in folders] == [
        InQueue("5_0", False, "Priority"),
        InQueue("5_1", True),
        InQueue("5_2", True),
        None,
    ]
    # The last but one runs elsewhere, where no lock of ours reaches.
    states = [folder.state for folder in folders]
    assert states == ["queued", "queued", "running", "waiting"]
    told = [status.at(run) for run in experiment.runs]
    assert told == ["job 5_0, waiting: Priority", "job 5_1, starting", "train", ""]
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(status.table(experiment))
    text = console.export_text()
    assert "4 runs: 1 running, 2 queued, 1 waiting" in text
    assert "job 5_0, waiting: Priority" in text


SLURMSTEPD = "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED DUE TO TIME LIMIT ***"


@pytest.mark.parametrize(
    "noted, squeue, sacct, state, error",
    [
        (
            dict(state="running"),
            "5|TIMEOUT|TimeLimit",
            None,
            "failed",
            f"Slurm job 5: the time limit passed: {SLURMSTEPD}",
        ),
        (  # squeue has forgotten it
            dict(state="running"),
            "",
            "5|OUT_OF_MEMORY|None",
            "failed",
            "Slurm job 5: out of memory; ask for more with --memory: " + SLURMSTEPD,
        ),
        (  # its tool was killed, and the job could say so
            dict(state="failed", error="train: no output (exit code -9)"),
            "5|OUT_OF_MEMORY|None",
            None,
            "failed",
            "Slurm job 5: out of memory; ask for more with --memory: train: no output "
            "(exit code -9)",
        ),
        (
            dict(state="failed", error="train: KeyError"),
            "5|FAILED|NonZeroExitCode",
            None,
            "failed",
            "train: KeyError",
        ),
        (  # before it could say anything
            {},
            "5|FAILED|NonZeroExitCode",
            None,
            "failed",
            f"Slurm job 5: {SLURMSTEPD}",
        ),
        (
            dict(state="interrupted", error=""),
            "",
            "5|CANCELLED by 1000|None",
            "interrupted",
            f"Slurm job 5: cancelled: {SLURMSTEPD}",
        ),
        (
            dict(state="running"),
            "",
            "",
            "interrupted",
            f"Slurm job 5: Slurm has forgotten how it ended: {SLURMSTEPD}",
        ),
        (dict(state="finished"), "5|COMPLETED|None", None, "finished", ""),
        (dict(state="finished"), "5|NODE_FAIL|None", None, "finished", ""),
    ],
)
def test_what_slurm_ended(repo, tmp_path, programs, noted, squeue, sacct, state, error):
    answers(programs, squeue, sacct)
    experiment = planned(repo, tmp_path / "out")
    folder = experiment.runs[0].folder
    log = tmp_path / "log.err"
    srun = "srun: error: n1: task 0: Exited with exit code 1"
    log.write_text(f"submitit INFO - Starting\n{SLURMSTEPD}\n{srun}\n")
    folder.note(**noted)
    folder.enqueue("5", log)
    assert slurm.update(experiment) == ""
    assert (folder.state, folder.error()) == (state, error)
    assert not folder.queue


def test_a_run_that_another_process_does_has_not_failed(repo, tmp_path, programs):
    """Its job found it busy."""
    answers(programs, "5|FAILED|NonZeroExitCode")
    experiment = planned(repo, tmp_path / "out")
    folder = experiment.runs[0].folder
    with folder.held():
        folder.note(state="running")
        folder.enqueue("5", tmp_path / "log")
        slurm.update(experiment)
        assert folder.state == "running"
    assert not folder.queue


def test_a_slurm_that_knows_none_of_the_jobs(repo, tmp_path, programs):
    said = "slurm_load_jobs error: Invalid job id specified"
    programs("squeue", f"echo '{said}' >&2; exit 1")
    experiment = planned(repo, tmp_path / "out")
    folder = experiment.runs[0].folder
    folder.enqueue("5", tmp_path / "log")
    assert slurm.update(experiment) == ""
    assert folder.state == "interrupted"


@pytest.fixture
def out_of_reach(repo, tmp_path, programs):
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    programs("squeue", f"echo '{said}' >&2; exit 1")
    experiment = planned(repo, tmp_path / "out")
    experiment.write()
    folder = experiment.runs[0].folder
    experiment = Experiment.open(experiment.out, repo)
    folder = experiment.runs[0].folder
    folder.enqueue("5", tmp_path / "log")
    return experiment


def test_a_slurm_that_does_not_answer_ends_nothing(out_of_reach):
    said = slurm.update(out_of_reach)
    assert "1 runs are Slurm's, which cannot be asked here" in said
    assert "Unable to contact slurm controller" in said
    assert out_of_reach.runs[0].folder.queue["job"] == "5"


def test_status_goes_on_without_it(out_of_reach, capsys):
    assert tool.main(["status", "--out", str(out_of_reach.out)]) == 0
    assert "states may be old" in capsys.readouterr().out.replace("\n", " ")


def test_nothing_is_submitted_without_it(out_of_reach, capsys, monkeypatch):
    monkeypatch.setattr(Experiment, "resolve", lambda self, advance: None)
    monkeypatch.setattr(
        tool.Experiment, "write", lambda self: setattr(self, "runs", out_of_reach.runs)
    )
    with pytest.raises(SystemExit) as ended:
        tool.main(["run", "--out", str(out_of_reach.out), "--slurm", "--time", "60"])
    assert ended.value.code == 2
    assert "might be submitted twice" in capsys.readouterr().err


# ---------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "options, said",
    [
        (["--time", "60"], "--time: for Slurm; add --slurm"),
        (["--slurm"], "--slurm needs a --time limit for each job"),
        (["--slurm", "--time", "1h"], "--time: a time limit is minutes, HH:MM:SS"),
        (["--slurm", "--time", "60", "--gpus", "0"], "Slurm chooses"),
        (["--slurm", "--time", "9", "--sbatch", "array=1-5"], "say --jobs instead"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        tool.main(["run", "--out", str(tmp_path), *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_options_of_slurm_are_a_request(tmp_path):
    line = (
        f"run --out {tmp_path} --slurm --time 1-0 --partition gpu --account lab "
        "--qos q --cpus 6 --memory 32G --jobs 5 --gpus-per-job 2 "
        "--sbatch constraint=a100 exclusive"
    )
    more = {"constraint": "a100", "exclusive": True}
    expected = slurm.Request(1440, "gpu", "lab", "q", 2, 6, "32G", 5, more)
    assert tool._request(tool.parse_args(line.split())) == expected


GRID = ["--datasets", "synth_action", "--methods", "erm", "--targets", "sketch"]


def test_runs_as_command_lines(repo, tiny_data, tmp_path, capsys):
    out = tmp_path / "out"
    grid = [*GRID, "--data-root", str(tiny_data)]
    grid += ["--select", "source", "leave_one_source_out"]
    given = ["commands", *grid, "--out", str(out), "--cpus", "3"]
    assert tool.main(given) == 0
    printed = capsys.readouterr()
    lines = [shlex.split(line) for line in printed.out.splitlines()]
    # The two sources are left out in turn, before it.
    early = [line[-1].startswith("synth_action/leave_one_source_out") for line in lines]
    assert early == [True, True, False]
    head = [sys.executable, str(repo / "tools/experiment.py"), "job", "--out", str(out)]
    for line in lines:
        assert line[:-1] == [*head, "--gpus-per-job", "1", "--cpus", "3"]
        folder = out / "runs" / line[-1]
        known = json.loads((folder / "run.json").read_text())
        assert known["config"] and folder.name.endswith(known["digest"][:8])
    assert "Lines 3 to 3 wait for those before them" in printed.err

    # What is done is not printed again.
    done = Experiment.open(out, repo).runs[0]
    done.folder.note(state="finished", trained=True)
    tool.main(given)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_job_whose_run_there_is_not(repo, tmp_path, capsys):
    planned(repo, tmp_path / "out").write()
    with pytest.raises(SystemExit):
        tool.main(["job", "--out", str(tmp_path / "out"), "synth_action/erm"])
    assert "holds no run 'synth_action/erm'" in capsys.readouterr().err


def test_a_run_that_changed_while_it_waited(repo, tiny_data, tmp_path):
    keys = dict(methods=["erm"], data_root=str(tiny_data))
    experiment = planned(repo, tmp_path / "out", **keys)
    run = experiment.runs[0]
    with pytest.raises(UsageError, match="was planned with another config, package or"):
        work(experiment, run, Share(), launch=lambda *_: Tool(0))
    assert not run.folder.known
    assert find(experiment, name_of(run)) is run


def test_a_job_is_done_in_the_foreground(
    repo, tiny_data, tmp_path, monkeypatch, capsys
):
    """The verb does what the line says; the tool itself is not started here."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = str(tmp_path / "out")
    tool.main(["commands", *GRID, "--data-root", str(tiny_data), "--out", out])
    line = shlex.split(capsys.readouterr().out)[2:]
    seen = []

    def launch(command, log, changes):
        seen.append((Path(command[0]).name, changes))
        return Tool(3)

    monkeypatch.setattr(tool.single.work, "__defaults__", (launch, None))
    with pytest.raises(SystemExit):
        tool.main([*line[:-1], "--cpus", "6", line[-1]])
    assert seen == [("train.py", {"OMP_NUM_THREADS": "3"})]
    assert "train: no output (exit code 3" in capsys.readouterr().err


# ------------------------------------------------------------------------------ locks


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Where a queue says what runs, a run goes on without one."""

    def refuse(file, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder.held():
        folder.note(state="running")
        assert not folder.is_held()
        assert folder.state == "interrupted"
        folder.in_queue = InQueue("5", True)
        assert folder.state == "running"
