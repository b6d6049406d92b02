"""One run: what it trains, chooses, tests and keeps, and what it does a second time."""

import errno
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from helpers.fake_tools import FakeTools, Hanging, option_of, value_of
from mmaction_mbcd.experiments import job as module
from mmaction_mbcd.experiments.grid import RunSpec
from mmaction_mbcd.experiments.job import (
    Job,
    Share,
    Stopped,
    ToolError,
    best_left_out_epoch,
    checked_settings,
    forked,
    spawned,
)
from mmaction_mbcd.experiments.run_folder import RunFolder
from tests_support import ROOT, load_tool

SPEC = RunSpec(
    dataset="hac", method="erm", config="erm.py", seed=3, target=("human",),
    settings=("train_cfg.max_epochs=3",),
)  # fmt: skip
ALL = ["source", "last", "oracle"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "_LOOK", 0.01)
    monkeypatch.setattr(module, "_SAME_SIGNAL", 0.01)


@pytest.fixture
def make(tmp_path):
    def job(name="run", purpose="grid", **kwargs):
        spec = SPEC.describe() | dict(purpose=purpose)
        folder = RunFolder(tmp_path / name)
        return Job(
            folder,
            Path("/repo"),
            record=lambda: folder.record(dict(spec=spec, digest="d")),
            **kwargs,
        )

    return job


def files(job, pattern="*.pth"):
    return sorted(p.name for p in job.folder.path.glob(pattern))


def again(job, tools, **changes):
    """The same run, perhaps with other wishes: which tools were started."""
    for name, value in changes.items():
        setattr(job, name, value)
    before = len(tools.lines)
    job.run(tools)
    return tools.tools[before:]


# --- choosing and keeping


def test_from_beginning_to_end(make):
    job, tools = make(select=["source", "last"]), FakeTools()
    assert not job.is_done()
    job.run(tools)
    assert job.is_done() and job.folder.state == "finished"
    assert tools.tools == ["train", "test", "test"]
    # The sources are best after epoch 2, the last one is 3.
    assert job.folder.results("source")["epoch"] == 2
    assert job.folder.results("last")["epoch"] == 3
    assert job.folder.predictions("source").logits[""][0, 0] == 2
    assert files(job) == ["best_source_top1_epoch_2.pth"]
    assert not (job.folder.path / "last_checkpoint").exists()
    noted = job.folder.noted
    assert noted["attempts"] == 1 and set(noted["seconds"]) == {
        "train", "test_source", "test_last",
    }  # fmt: skip
    assert again(job, tools) == []


@pytest.mark.parametrize(
    ("keep", "select", "left"),
    [
        ("best", ["source", "last"], ["best_source_top1_epoch_2.pth"]),
        ("best", ["last", "source"], ["epoch_3.pth"]),
        ("best", ["oracle", "source"], ["best_target_top1_epoch_1.pth"]),
        # It chooses none here, so the next rule's is what is kept.
        ("best", ["leave_one_source_out", "source"], ["best_source_top1_epoch_2.pth"]),
        ("none", ["source"], []),
        (
            "all", ["source"],
            ["best_source_top1_epoch_2.pth", "epoch_2.pth", "epoch_3.pth"],
        ),
    ],
)  # fmt: skip
def test_what_is_kept(make, keep, select, left):
    job = make(select=select, keep_checkpoints=keep)
    job.run(FakeTools())
    assert files(job) == left


def test_the_oracle_watches_the_target(make):
    job, tools = make(select=ALL), FakeTools()
    job.run(tools)
    assert {r: job.folder.results(r)["epoch"] for r in ALL} == dict(
        source=2, last=3, oracle=1
    )
    line = tools.lines[0]
    assert option_of(line, "val_dataloader.dataset.watch_target") == "True"
    best = option_of(line, "default_hooks.checkpoint.save_best")
    assert best == "[source/top1,target/top1]"


def test_the_same_epoch_is_tested_once(make):
    tools = FakeTools(source=[0.1, 0.2, 0.9], target=[0.1, 0.2, 0.8])
    job = make(select=ALL, evaluate=["target", "in_domain"])
    job.run(tools)
    assert tools.tools == ["train", "test", "test"]
    assert [("--in-domain" in line) for line in tools.lines] == [False, False, True]
    for evaluation in ("target", "in_domain"):
        content = {job.folder.results_file(r, evaluation).read_text() for r in ALL}
        found = [job.folder.results(r, evaluation) for r in ALL]
        assert len({json.dumps(each) for each in found}) == 1 and content
        assert found[0]["in_domain"] is (evaluation == "in_domain")
        bits = {job.folder.predictions_file(r, evaluation).read_bytes() for r in ALL}
        assert len(bits) == 1


@pytest.mark.parametrize("keep", ["best", "none", "all"])
@pytest.mark.parametrize("first", ["source", "last"])
def test_a_rule_that_is_added_later(make, keep, first):
    """What is gone is trained again; nothing that is there is tested again."""
    job, tools = make(select=[first], keep_checkpoints=keep), FakeTools()
    job.run(tools)
    path = job.folder.results_file(first)
    before = path.stat().st_mtime_ns
    assert again(job, tools, select=[first, "oracle"]) == ["train", "test"]
    assert job.folder.results("oracle")["epoch"] == 1 and job.is_done()
    assert path.stat().st_mtime_ns == before
    other = "last" if first == "source" else "source"
    started = again(job, tools, select=[first, "oracle", other])
    assert started == (["test"] if keep == "all" else ["train", "test"])
    assert job.folder.results(other)["epoch"] == dict(source=2, last=3)[other]
    assert again(job, tools) == []


def test_a_rule_that_is_added_while_it_trains(make):
    """Checkpoints of the training so far are not those that the rule needs."""
    job, tools = make(select=["source"]), FakeTools()
    tools.fails = {"test": ("ValueError: no\n", 1)}
    with pytest.raises(ToolError):
        job.run(tools)
    job.folder.note(trained=False)  # it was interrupted before
    tools.fails = {}
    assert again(job, tools, select=["source", "oracle"]) == ["train", "test", "test"]
    assert job.folder.results("oracle")["epoch"] == 1


def test_an_evaluation_that_is_added_later(make):
    job, tools = make(select=["source"]), FakeTools()
    job.run(tools)
    assert again(job, tools, evaluate=["target", "in_domain"]) == ["test"]
    assert job.folder.results("source", "in_domain")["in_domain"] is True


class NoTarget(FakeTools):
    """Validates without the target, whatever it is told."""

    def _train(self, line, folder):
        super()._train([w for w in line if "save_best" not in w], folder)


def test_what_is_not_available_is_not_tried_for_ever(make):
    job, tools = make(select=["source", "oracle"]), NoTarget()
    job.run(tools)
    assert job.folder.noted["unavailable"] == ["oracle"] and job.is_done()
    assert again(job, tools) == []
    assert again(job, tools, select=["source", "oracle", "last"]) == ["train", "test"]
    assert job.folder.noted["unavailable"] == ["oracle"] and job.is_done()


def test_of_two_best_checkpoints_the_later_one_counts(make):
    """A kill between the new one and the old one's removal; 10 comes after 9."""
    job = make()
    job.record()
    for epoch in (2, 9, 10):
        (job.folder.path / f"best_source_top1_epoch_{epoch}.pth").touch()
        (job.folder.path / f"epoch_{epoch}.pth").touch()
    assert job.epoch_of("source") == 10 and job.epoch_of("last") == 10
    assert job.epoch_of("oracle") is None
    assert job.checkpoint_of(9).name == "best_source_top1_epoch_9.pth"
    assert job.checkpoint_of(3) is None


# --- damaged files


@pytest.mark.parametrize("part", ["", '{"epoch": 2, "met'])
def test_results_that_were_cut_off_are_made_again(make, part):
    job, tools = make(select=["source"]), FakeTools()
    job.run(tools)
    whole = job.folder.results("source")
    job.folder.results_file("source").write_text(part)
    assert not job.is_done()
    assert again(job, tools) == ["test"]
    assert job.folder.results("source") == whole


def test_a_lost_state_costs_nothing_that_is_there(make):
    job, tools = make(select=["source", "last"]), FakeTools()
    job.run(tools)
    (job.folder.path / "state.json").write_text("")
    (job.folder.path / "run.json").write_text("{")
    assert not job.is_done()
    assert again(job, tools) == [] and job.is_done() and job.folder.spec == SPEC


def test_a_lost_state_while_it_trained(make):
    job, tools = make(select=["source"]), FakeTools(fails=dict(test=("x", 1)))
    with pytest.raises(ToolError):
        job.run(tools)
    (job.folder.path / "state.json").unlink()
    tools.fails = {}
    assert again(job, tools) == ["train", "test"]  # `--resume` finds it at its end


# --- failures


@pytest.mark.parametrize(
    ("tool", "output", "code", "line"),
    [
        ("train", "x\nValueError: bad\n", 1, "train: ValueError: bad (exit code 1; "),
        ("train", "", 2, "train: no output (exit code 2; "),
        ("test", "test.py: error: gone\n", 2, "test_source: test.py: error: gone (exi"),
        ("train", "Epoch 1\n", -signal.SIGKILL, "killed by SIGKILL; was there too lit"),
        ("train", "Epoch 1\n", -signal.SIGSEGV, "train: Epoch 1 (killed by SIGSEGV; "),
    ],
)  # fmt: skip
def test_a_tool_that_fails(make, tool, output, code, line):
    job, tools = make(), FakeTools(fails={tool: (output, code)})
    with pytest.raises(ToolError) as error:
        job.run(tools)
    assert line in str(error.value) and str(job.folder.path) in str(error.value)
    assert job.folder.state == "failed" and job.folder.error() == str(error.value)
    assert not job.is_done()
    tools.fails = {}
    trained = tool == "test"
    assert again(job, tools) == (["test"] if trained else ["train", "test"])
    assert job.folder.state == "finished" and job.folder.error() == ""
    assert job.folder.noted["attempts"] == 2


def test_an_error_of_the_first_try_is_not_said_of_the_second(make):
    job, tools = make(), FakeTools(fails=dict(train=("ValueError: old\n", 1)))
    with pytest.raises(ToolError):
        job.run(tools)
    tools.fails = dict(train=("something else\n", 1))
    with pytest.raises(ToolError, match="train: something else"):
        job.run(tools)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyError("x")]
)
def test_an_error_of_our_own_is_the_runs(make, error):
    def fails(line):
        raise error

    job = make()
    with pytest.raises(type(error)):
        job.run(FakeTools(on_launch=fails))
    assert job.folder.state == "failed"
    assert job.folder.error() == f"{type(error).__name__}: {error}"


def test_a_full_disk_does_not_hide_the_reason(make, monkeypatch):
    """Even the note that it failed cannot be written."""

    def full(self, **facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    job = make()
    job.record()
    job.folder.note(state="running")
    monkeypatch.setattr(RunFolder, "note", full)
    with pytest.raises(OSError, match="No space left"):
        job.run(FakeTools())
    assert job.folder.state == "interrupted"


# --- stopping


def test_stopping(make):
    job, tools, stop = make(), FakeTools(hangs=("run",)), threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        job.run(tools, stop)
    assert job.folder.state == "interrupted" and job.folder.noted["phase"] == "train"
    tools.hangs = ()
    assert again(job, tools) == ["train", "test"]


def test_stopped_before_it_began(make):
    stop = threading.Event()
    stop.set()
    tools = FakeTools()
    with pytest.raises(Stopped):
        make().run(tools, stop)
    assert tools.lines == []


def test_a_signal_that_reaches_the_tool_first(make, monkeypatch):
    """Ctrl-C goes to every process; that the tool has ended is no failure."""
    monkeypatch.setattr(module, "_SAME_SIGNAL", 5)
    stop = threading.Event()

    def interrupted(line):
        threading.Timer(0.2, stop.set).start()

    tools = FakeTools(fails=dict(train=("interrupted\n", 130)), on_launch=interrupted)
    job = make()
    with pytest.raises(Stopped):
        job.run(tools, stop)
    assert job.folder.state == "interrupted"


def test_an_interruption_of_this_process_ends_the_tool(make, monkeypatch):
    tool = Hanging()

    def interrupt(self):
        if not self.terminated:
            raise KeyboardInterrupt
        return self.code

    monkeypatch.setattr(Hanging, "exitcode", interrupt)
    job = make()
    with pytest.raises(KeyboardInterrupt):
        job.run(lambda line, log, changes: tool)
    assert tool.terminated and job.folder.state == "interrupted"


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("launch", [forked, spawned])
def test_real_processes(tmp_path, monkeypatch, launch):
    """Output, environment, exit code; one that hangs on SIGTERM is killed."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(
        "import os, sys, torch\n"
        "print(sys.argv[1:], os.environ['A'], torch.get_num_threads())\nsys.exit(7)"
        if launch is forked
        else "import os, sys\nprint(sys.argv[1:], os.environ['A'], 1)\nsys.exit(7)"
    )
    tool = launch([str(script), "x"], log, {"A": "b", "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 100
    while tool.exitcode() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert tool.exitcode() == 7 and log.read_text() == "['x'] b 1\n"
    tool.terminate()  # it is over: nothing
    monkeypatch.setattr(module, "_GRACE", 0.3)
    script.write_text(STUBBORN)
    tool = launch([str(script)], log, {})
    while "ready" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    tool.terminate()
    assert tool.exitcode() == -signal.SIGKILL


def test_a_tool_that_is_to_see_no_gpu_looks_for_itself(tmp_path):
    """What has done the imports has looked already, perhaps at GPUs."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text("import sys; print('mmengine.device' in sys.modules)")
    for devices, looked in ((None, "True"), ((), "False")):
        tool = forked([str(script)], log, Share(devices=devices).environment())
        end = time.monotonic() + 100
        while tool.exitcode() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert log.read_text().split()[-1] == looked


def test_exit_codes_while_others_start(tmp_path):
    """Threads that look at the same time; a lost code was read as 255."""
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit(int(sys.argv[1]))")
    found, lock = {}, threading.Lock()

    def work(number):
        tool = forked([str(script), str(number)], tmp_path / f"{number}.log", {})
        while tool.exitcode() is None:
            pass
        with lock:
            found[number] = tool.exitcode()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert found == {i: i for i in range(3, 9)}


# --- leaving a source out


def curve(folder, values):
    logs = folder / "1" / "vis_data"
    logs.mkdir(parents=True)
    rows = [
        json.dumps({"step": e, "source/top1": 0.5, "target/top1": v})
        for e, v in values.items()
    ]
    (logs / "scalars.json").write_text("\n".join(rows) + '\n{"loss": 0.')
    return folder


@pytest.mark.parametrize(
    ("curves", "epoch"),
    [
        # Means 0.3, 0.5, 0.4.
        ([{1: 0.2, 2: 0.4, 3: 0.6}, {1: 0.4, 2: 0.6, 3: 0.2}], 2),
        # Equal means: the later one, as a run's own validation chooses.
        ([{1: 0.5, 2: 0.4}, {1: 0.3, 2: 0.4}], 2),
        # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in the last digit.
        ([{1: 0.3, 2: 0.1}, {1: 0.2, 2: 0.2}, {1: 0.1, 2: 0.3}], 2),
        ([{1: 0.1, 2: 0.3}, {1: 0.2, 2: 0.2}, {1: 0.3, 2: 0.1}], 2),
        # Only what all have.
        ([{2: 0.1, 4: 0.2, 6: 0.9}, {2: 0.1, 4: 0.2}], 4),
        ([{1: 0.9}, {2: 0.9}], None),
        ([], None),
    ],
)
def test_the_left_out_epoch_by_hand(tmp_path, curves, epoch):
    runs = [curve(tmp_path / str(i), c) for i, c in enumerate(curves)]
    assert best_left_out_epoch(runs) == epoch


def test_no_left_out_curves(tmp_path):
    assert best_left_out_epoch([tmp_path]) is None


LEFT_OUT = "leave_one_source_out"


@pytest.fixture
def three(make):
    """Two runs that choose the epoch of a third one."""
    first, second = (make(n, LEFT_OUT, select=["source", LEFT_OUT]) for n in "ab")
    own = make(select=["source", LEFT_OUT], left_out=[first.folder, second.folder])
    return first, second, own


def test_left_out_runs_choose_the_epoch(three):
    first, second, own = three
    first.run(FakeTools(target=[0.9, 0.1, 0.3]))
    second.run(FakeTools(target=[0.2, 0.1, 0.4]))
    assert files(first) == [] and first.is_done()
    tools = FakeTools()
    own.run(tools)
    # Means 0.55, 0.1, 0.35: the first epoch, whose checkpoint must be kept until then.
    assert own.folder.results(LEFT_OUT)["epoch"] == 1
    assert option_of(tools.lines[0], "default_hooks.checkpoint.max_keep_ckpts") == "-1"
    assert own.is_done() and files(own) == ["best_source_top1_epoch_2.pth"]


def test_a_left_out_run_that_failed_is_waited_for(three):
    """Half its curve would choose an epoch, too: a wrong one."""
    first, second, own = three
    first.run(FakeTools(target=[0.9, 0.1, 0.3]))
    second.record()
    curve(second.folder.path, {1: 0.0, 2: 0.9})
    second.folder.note(state="failed")
    tools = FakeTools()
    own.run(tools)
    assert own.folder.results(LEFT_OUT) == {} and own.folder.noted["unavailable"] == []
    assert tools.tools == ["train", "test"] and not own.is_done()
    assert again(own, tools) == []  # nothing to do yet, and nothing is thrown away
    second.folder.note(state="waiting")
    (second.folder.path / "1" / "vis_data" / "scalars.json").unlink()
    second.run(FakeTools(target=[0.2, 0.1, 0.4]))
    assert again(own, tools) == ["test"] and own.is_done()
    assert own.folder.results(LEFT_OUT)["epoch"] == 1


# --- what the tools are told


def test_settings_of_the_rules():
    watched = "val_dataloader.dataset.watch_target=True"
    assert checked_settings(SPEC, ["source", "last"]) == []
    assert checked_settings(SPEC, ["oracle"])[0] == watched
    assert checked_settings(SPEC, [LEFT_OUT]) == [
        "default_hooks.checkpoint.max_keep_ckpts=-1"
    ]
    left_out = RunSpec(**(SPEC.__dict__ | dict(purpose=LEFT_OUT)))
    assert checked_settings(left_out, ["source", "oracle", LEFT_OUT]) == [watched]


def test_command_lines(make):
    job = make(select=ALL, share=Share(threads=2, workers=0, devices=("1",)))
    job.record()
    train, test = load_tool("train"), load_tool("test")
    line = job.train_command()
    assert line[0] == "/repo/tools/train.py"
    args = train.parse_args(line[1:])
    assert args.seed == 3 and args.resume == "auto" and args.target == ["human"]
    assert args.work_dir == str(job.folder.path) and args.config == "erm.py"
    workers = {f"{s}_dataloader.num_workers": 0 for s in ("train", "val", "test")}
    persistent = {k.replace("num", "persistent"): False for k in workers}
    assert args.cfg_options == workers | persistent | {
        "train_cfg.max_epochs": 3,
        "val_dataloader.dataset.watch_target": True,
        "default_hooks.checkpoint.save_best": ["source/top1", "target/top1"],
    }
    line = job.test_command(Path("a.pth"), "last", "in_domain")
    args = test.parse_args(line[1:])
    assert args.checkpoint == "a.pth" and args.in_domain
    assert args.out.endswith("/results_last_in_domain.json")
    assert args.predictions.endswith("/predictions_last_in_domain.npz")
    changes = dict(OMP_NUM_THREADS="2", CUDA_VISIBLE_DEVICES="1")
    assert job.share.environment() == changes
    assert Share().environment() == {} and job.folder.spec == SPEC


def test_several_processes(make):
    job = make(share=Share(devices=("0", "1"), processes=2))
    job.record()
    line = job.train_command()
    assert line[:3] == ["/repo/tools/dist_train.sh", "erm.py", "2"]
    line = job.test_command(Path("a.pth"), "last")
    assert line[:4] == ["/repo/tools/dist_test.sh", "erm.py", "a.pth", "2"]
    assert (ROOT / "tools" / "dist_test.sh").is_file()
    assert value_of(line, "--work-dir") == str(job.folder.path)
