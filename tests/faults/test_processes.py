"""Signals, kills and errors of one process among several: how a run ends."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.signals import in_a_group_of_its_own, stop
from mmaction_mbcd import cli, errors, scripts
from mmaction_mbcd.preparation.downloads import runs
from tests_support import ROOT, load_tool

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
named = pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
first = pytest.mark.parametrize(
    ("number", "code", "word"),
    [SIGNALS[0], pytest.param(*SIGNALS[1], marks=pytest.mark.long)],
)


def wait_for(condition, seconds=60):
    """Until it is true; raises when that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def group_is_empty(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


# --- one process


def start_training(repo, data, folder, **options):
    """``tools/train.py`` on small data, for much longer than a test waits."""
    options = {
        "train_cfg.max_epochs": 500,
        "train_cfg.val_interval": 500,
        "train_dataloader.batch_size": 4,
        "train_dataloader.num_workers": 2,
    } | options
    argv = [
        str(repo / "tools" / "train.py"),
        str(repo / "configs/mbcd/synth_action/erm.py"),
        *("--work-dir", str(folder), "--data-root", str(data)),
        *("--cfg-options", *(f"{k}={v}" for k, v in options.items())),
    ]
    outputs = [str(folder.parent / name) for name in ("stdout", "stderr")]
    process = scripts.CONTEXT.Process(
        target=in_a_group_of_its_own,
        args=(argv, str(folder.parent), dict(os.environ), outputs),
    )
    process.start()
    return process, [Path(path) for path in outputs]


@first
def test_a_training_says_what_is_saved_and_how_to_go_on(
    repo, tiny_data, tmp_path, number, code, word
):
    """The signal goes to the whole group, data workers included, as Ctrl-C does."""
    folder = tmp_path / "work"
    process, (stdout, stderr) = start_training(repo, tiny_data, folder)
    try:
        wait_for(lambda: (folder / "epoch_1.pth").exists())
        os.killpg(process.pid, number)
        process.join(20)
        assert process.exitcode == code
        wait_for(lambda: group_is_empty(process.pid), 10)
    finally:
        process.kill()
    (saved,) = folder.glob("epoch_*.pth")
    said = stderr.read_text()
    assert "Traceback" not in stdout.read_text() + said
    assert said.splitlines()[-1] == (
        f"train.py: {word}; saved is {saved}: the same command with --resume "
        "continues from there"
    )


def test_advice_where_nothing_is_saved(tmp_path):
    again = "nothing was saved yet: run the same command again"
    assert cli.continue_advice(None) == again
    cfg = cli.options.Config(dict(work_dir=str(tmp_path / "gone")))
    assert cli.continue_advice(cfg) == again
    (tmp_path / "best_source_top1_epoch_1.pth").touch()
    assert (
        cli.continue_advice(cli.options.Config(dict(work_dir=str(tmp_path)))) == again
    )


@pytest.fixture
def signals():
    """The handlers of this process as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@named
@pytest.mark.parametrize(
    ("tool", "function", "argv"),
    [
        ("test", "build_config", ["a.py", "b.pth"]),
        ("leave_one_domain_out", "_plan", ["a.py"]),
        ("demo", "run_demo", []),
        ("data/make_synth_action", "generate", ["there"]),
        ("data/epic/convert_splits", "read_splits", ["here", "there"]),
        ("data/check", "check", ["a.py", "--target", "b"]),
    ],
)
def test_other_tools_end_in_one_line_too(
    signals, monkeypatch, capsys, tool, function, argv, number, code, word
):
    module = load_tool(tool)
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *argv])
    monkeypatch.setattr(module, function, functools.partial(stop, number))
    if tool == "data/check":
        monkeypatch.setattr(cli, "load_config", lambda args: None)
        monkeypatch.setattr(module, "training_problems", lambda *args: [])
    with pytest.raises(SystemExit) as end:
        module.main() if tool == "demo" else module.main(argv)
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{Path(tool).name}.py: {word}; ") and "same command" in line


@named
def test_downloads_end_at_once(number, code, word, capfd, monkeypatch):
    process = scripts.CONTEXT.Process(
        target=runs.exit_code, args=(functools.partial(stop, number),)
    )
    process.start()
    process.join(20)
    assert process.exitcode == -number  # which a shell shows as 128 + number


def test_a_data_worker_that_the_signal_reached_first(signals, capsys):
    text = "DataLoader worker (pid 7) is killed by signal: Terminated."
    with pytest.raises(SystemExit) as end, errors.one_line_errors():
        raise RuntimeError(text)
    assert end.value.code == 143
    with pytest.raises(RuntimeError, match="by signal: Killed"):
        with errors.one_line_errors():
            raise RuntimeError(text.replace("Terminated", "Killed"))


def test_handlers_are_restored_and_children_do_not_raise():
    before = signal.getsignal(signal.SIGTERM)
    with errors.one_line_errors():
        assert signal.getsignal(signal.SIGTERM) is not before
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGINT)  # nothing
            os.kill(os.getpid(), signal.SIGTERM)  # ends it
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


# --- several processes

# Loaded by their paths: importing the package takes ten seconds a process.
HEADER = f"""
import importlib.util, os, sys, time

def load(name):
    path = {str(ROOT / "mmaction_mbcd")!r} + '/' + name + '.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

rank, folder = os.environ['RANK'], sys.argv[1]
open(os.path.join(folder, rank + '.pid'), 'w').write(str(os.getpid()))
"""


def launch(tmp_path, body):
    """Two processes under tools/dist_launch.py, in a group of their own."""
    script = tmp_path / "script.py"
    script.write_text(HEADER + body)
    options = ["--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=0"]
    launcher = [sys.executable, str(ROOT / "tools/dist_launch.py"), *options]
    return subprocess.Popen(
        [*launcher, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def pids(tmp_path):
    texts = [tmp_path / f"{rank}.pid" for rank in range(2)]
    wait_for(lambda: all(text.exists() and text.read_text() for text in texts))
    return [int(text.read_text()) for text in texts]


def is_gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_killing_the_launcher_leaves_no_process(tmp_path):
    body = "load('compat').end_with_launcher()\nopen(folder + '/ready' + rank, 'w')\n"
    process = launch(tmp_path, body + "time.sleep(120)")
    found = pids(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    assert not any(map(is_gone, found))
    process.kill()
    process.communicate()
    wait_for(lambda: all(map(is_gone, found)), 5)


def test_the_first_error_of_any_process_is_the_last_line(tmp_path):
    body = """
with load('errors').one_line_errors():
    if rank == '1':
        time.sleep(0.5)
        raise ValueError('no room\\nfor it')
    time.sleep(120)
"""
    begin = time.monotonic()
    process = launch(tmp_path, body)
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 60 and process.returncode == 1
    assert said.splitlines()[-1] == "process 1: error: ValueError: no room for it"
    assert all(map(is_gone, pids(tmp_path)))


@pytest.mark.long
def test_a_wrong_request_is_said_once(tmp_path):
    body = """
errors = load('errors')
with errors.one_line_errors():
    raise errors.UsageError('no such thing')
"""
    process = launch(tmp_path, body)
    said, _ = process.communicate(timeout=60)
    (line,) = [x for x in said.splitlines() if "no such thing" in x]
    assert line.endswith(": error: no such thing") and line.startswith("process ")
    assert process.returncode == 2 and "Traceback" not in said


@first
def test_stopping_a_launcher(tmp_path, number, code, word):
    body = """
with load('errors').one_line_errors(lambda: 'go on'):
    open(folder + '/ready' + rank, 'w')
    time.sleep(120)
"""
    process = launch(tmp_path, body)
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in said
    assert f"script.py: {word}; go on" in said
    assert all(map(is_gone, pids(tmp_path)))


@pytest.mark.long
def test_a_killed_torchrun_ends_its_trainings(repo, tiny_data, tmp_path):
    """The real thing: two trainings with data workers of their own."""
    options = ["train_cfg.max_epochs=500", "train_dataloader.batch_size=4"]
    process = subprocess.Popen(
        [
            *(
                str(repo / "tools/dist_train.sh"),
                "configs/mbcd/synth_action/erm.py",
                "2",
            ),
            *("--work-dir", str(tmp_path), "--data-root", str(tiny_data)),
            *("--cfg-options", *options),
        ],
        cwd=repo,
        env=os.environ | {"PYTHON": sys.executable},
        start_new_session=True,
    )
    wait_for(lambda: list(tmp_path.glob("epoch_*.pth")), 200)
    process.kill()
    process.wait()
    wait_for(lambda: group_is_empty(process.pid), 20)
