"""A run's folder: what it says of the run, whatever became of its files."""

import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from mmaction_mbcd.experiments import run_folder
from mmaction_mbcd.experiments.grid import RunSpec
from mmaction_mbcd.experiments.run_folder import (
    BusyError,
    RunFolder,
    line_that_matters,
    read_json,
    write_json,
)

SPEC = RunSpec(dataset="hac", method="erm", config="erm.py", seed=3, target=("human",))


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.record(dict(spec=SPEC.describe(), digest="d"))
    return made


# --- states


def test_a_folder_that_is_not_there(tmp_path):
    empty = RunFolder(tmp_path / "nothing")
    assert empty.state == "waiting" and not empty.is_held()
    assert empty.known == empty.noted == empty.progress == {}
    assert empty.error() == "" and empty.results("source") == {}
    assert empty.predictions("source") is None
    assert not empty.path.exists()


def test_states(folder):
    assert folder.state == "waiting"
    for state in ("finished", "failed", "interrupted"):
        folder.note(state=state)
        assert folder.state == state
    folder.note(state="running")
    assert folder.state == "interrupted"  # nobody works on it
    with folder.held():
        assert folder.state == "running" and folder.is_held()
        assert folder.noted["pid"] == os.getpid()
    assert folder.state == "interrupted" and not folder.is_held()


def test_a_run_that_ends_between_two_looks_is_not_interrupted(folder, monkeypatch):
    folder.note(state="running")

    def ends(self):
        self.note(state="finished")
        return False

    monkeypatch.setattr(RunFolder, "is_held", ends)
    assert folder.state == "finished"


def test_notes_are_added(folder):
    folder.note(a=1, b=2)
    folder.note(b=3)
    assert folder.noted == dict(a=1, b=3) and folder.spec == SPEC


def hold(path, ready, leave):
    with RunFolder(path).held():
        RunFolder(path).note(state="running")
        ready.set()
        leave.wait(60)


@pytest.fixture
def holder(folder):
    """Another process that works on the folder."""
    fork = multiprocessing.get_context("fork")
    ready, leave = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(folder.path, ready, leave))
    process.start()
    assert ready.wait(60)
    yield process, leave
    process.kill()
    process.join()


def test_another_process_at_work(folder, holder):
    process, leave = holder
    assert folder.state == "running" and folder.is_held()
    noted = folder.noted
    with pytest.raises(BusyError, match=f"worked on by process {process.pid} on "):
        with folder.held():
            raise AssertionError("two at once")
    assert folder.noted == noted
    leave.set()
    process.join()
    with folder.held():
        assert folder.noted["pid"] == os.getpid()


def test_a_killed_process_frees_it(folder, holder):
    process, _ = holder
    process.kill()
    process.join()
    assert folder.state == "interrupted"
    with folder.held():
        assert folder.state == "running"


def test_looking_does_not_keep_others_out(folder):
    """Whoever asks for the state holds the lock for a moment."""
    over = threading.Event()

    def look():
        while not over.is_set():
            folder.is_held()

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(20):
            with folder.held():
                pass
    finally:
        over.set()
        looker.join()


# --- damage


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"state": "fin', "\x00", "é"]
)
def test_damaged_files(folder, text):
    for name in ("state.json", "run.json", "progress.json", "results_source.json"):
        (folder.path / name).write_bytes(text.encode("latin-1"))
    assert folder.state == "waiting" and folder.known == {} and folder.progress == {}
    assert folder.results("source") == {}
    folder.record(dict(spec=SPEC.describe()))
    folder.note(state="finished")
    assert folder.spec == SPEC and folder.state == "finished"


def test_what_it_is_is_written_once(folder):
    folder.record(dict(spec="another"))
    assert folder.spec == SPEC


def test_a_state_that_nobody_knows(folder):
    folder.note(state="sleeping")
    assert folder.state == "waiting"


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, dict(a=1))

    def full(self, text, **kwargs):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, dict(a=2))
    assert read_json(path) == dict(a=1)
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_names_of_results(folder):
    assert folder.results_file("last").name == "results_last.json"
    assert (
        folder.results_file("last", "in_domain").name == "results_last_in_domain.json"
    )
    assert folder.predictions_file("source").name == "predictions_source.npz"


# --- the line that says why

TRACEBACK = """
Traceback (most recent call last):
  File "tools/train.py", line 3, in <module>
    raise ValueError("error: inside")
ValueError: sizes of tensors must match
"""
CHAIN = (
    TRACEBACK
    + """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 1, in f
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB
  details follow
"""
)
USAGE = """
2026/01/01 10:00:00 - mmengine - INFO - Epoch(train) [1][10/20]  loss: 1.2
UserWarning: error: an old one
train.py: error: pretrained weights are missing: a.pth (video)
"""
TORCHRUN = """
W0101 10:00:00.0 torch/distributed/elastic/multiprocessing/api.py:900] Sending process
E0101 10:00:00.0 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode)
process 1: error: ValueError: no room for it
"""
KILLED = """
2026/01/01 10:00:00 - mmengine - INFO - Epoch(train) [1][10/20]  loss: 1.2

"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (TRACEBACK, "ValueError: sizes of tensors must match"),
        (CHAIN, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        (USAGE, "train.py: error: pretrained weights are missing: a.pth (video)"),
        (TORCHRUN, "process 1: error: ValueError: no room for it"),
        (KILLED, KILLED.strip()),
        ("RuntimeError: a\n\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        ("AssertionError\n", "AssertionError"),
        ("loss: nan (an Error bar)\nthe end", "the end"),
        ("\n \n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_line_that_matters(tmp_path, text, line):
    log = tmp_path / "log"
    log.write_text(text)
    assert line_that_matters(log) == line


def test_only_what_came_since(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"ValueError: of the first try\n")
    start = log.stat().st_size
    assert line_that_matters(log, start) == ""
    with open(log, "ab") as file:
        file.write(b"\xff\xfe begun\nall is well\n")
    assert line_that_matters(log, start) == "all is well"
    assert line_that_matters(log) == "ValueError: of the first try"
    assert line_that_matters(tmp_path / "none") == ""


def test_files_are_read_by_people(folder):
    text = (folder.path / "run.json").read_text()
    assert json.loads(text)["digest"] == "d" and text.count("\n") > 5
    assert run_folder.STATES[0] == "waiting"
