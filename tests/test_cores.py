"""Whose cores they are: affinity, quotas, processes beside, and what the user says."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
from joblib.externals.loky.backend import context

from mmaction_mbcd import cores
from tests_support import ROOT, load_tool

VARIABLES = (
    *cores._WAITING,
    *cores._THREADS,
    *("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK", "LOKY_MAX_CPU_COUNT"),
)


@pytest.fixture(autouse=True)
def _environment():
    kept = {name: os.environ[name] for name in os.environ if name not in VARIABLES}
    with mock.patch.dict(os.environ, kept, clear=True):
        yield


@pytest.fixture
def machine(monkeypatch):
    """Pretends: 64 cores, of which so many are this process's, and a cgroup's files."""

    def pretend(affinity=64, files=None):
        files = files or {}
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
        there = os.path.exists
        monkeypatch.setattr(
            os.path,
            "exists",
            lambda path: (
                path in files if "/sys/fs/cgroup" in str(path) else there(path)
            ),
        )
        monkeypatch.setattr(
            context, "open", lambda path: io.StringIO(files[path]), raising=False
        )

    return pretend


def v2(text):
    return {"/sys/fs/cgroup/cpu.max": text}


def v1(quota, period="100000"):
    folder = "/sys/fs/cgroup/cpu/cpu.cfs_"
    return {f"{folder}quota_us": quota, f"{folder}period_us": period}


@pytest.mark.parametrize(
    ("affinity", "files", "expected"),
    [
        (64, {}, 64),
        (6, {}, 6),
        (64, v2("max 100000\n"), 64),
        (64, v2("400000 100000\n"), 4),
        (64, v2("150000 100000\n"), 2),  # rounded up
        (64, v2("20000 100000\n"), 1),
        (3, v2("400000 100000\n"), 3),
        (64, v1("-1\n"), 64),
        (64, v1("800000\n"), 8),
        (64, v1("100000\n", "50000\n"), 2),
    ],
)
def test_usable_cores(machine, affinity, files, expected):
    machine(affinity, files)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(
    ("task", "expected"), [("4", 4), ("20", 12), ("", 12), ("0", 12), ("x", 12)]
)
def test_cores_of_a_slurm_task(machine, monkeypatch, task, expected):
    machine(12)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", task)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(
    ("processes", "expected"), [("1", 12), ("2", 6), ("5", 2), ("12", 1), ("40", 1)]
)
def test_processes_that_train_together(machine, monkeypatch, processes, expected):
    machine(12)
    assert cores.own_cores() == 12
    assert cores.own_cores(int(processes)) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cores.own_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not on this system")
def test_real_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


# --- what becomes of it


@pytest.fixture
def torch_of(monkeypatch):
    """Has a torch of so many threads imported within ``shared_cores``; what it has."""

    def enter(threads, loaded=False):
        has = [threads]
        fake = SimpleNamespace(
            get_num_threads=lambda: has[-1], set_num_threads=has.append
        )
        monkeypatch.delitem(sys.modules, "torch")
        if loaded:
            monkeypatch.setitem(sys.modules, "torch", fake)
        with cores.shared_cores():
            monkeypatch.setitem(sys.modules, "torch", fake)
            policy = os.environ.get("OMP_WAIT_POLICY")
        return has[-1], policy

    return enter


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (4, "PASSIVE")),  # of torch's own 8
        (dict(LOCAL_WORLD_SIZE="2"), (2, "PASSIVE")),
        (dict(OMP_NUM_THREADS="8"), (8, "PASSIVE")),
        (dict(MKL_NUM_THREADS="8"), (8, "PASSIVE")),
        (dict(OMP_WAIT_POLICY="ACTIVE"), (4, "ACTIVE")),
        (dict(GOMP_SPINCOUNT="9"), (4, None)),
        (dict(KMP_BLOCKTIME="9", OMP_NUM_THREADS="8"), (8, None)),
    ],
)
def test_threads_and_waiting(machine, torch_of, environment, expected):
    machine(64, v2("400000 100000\n"))
    os.environ.update(environment)
    assert torch_of(8) == expected


def test_no_more_threads_than_torch_takes(machine, torch_of):
    """It knows of hyper-threads, and a run's bits depend on the number."""
    machine(64)
    assert torch_of(32) == (32, "PASSIVE")


def test_torch_that_was_there_before(machine, torch_of):
    machine(4)
    assert torch_of(8, loaded=True) == (8, None)


@pytest.mark.long  # the import takes seconds
def test_a_real_import():
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import mmaction_mbcd, torch; "
        "print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = os.environ | dict(SLURM_CPUS_PER_TASK="1")
    line = [sys.executable, "-c", code, str(ROOT)]
    found = subprocess.run(line, env=environment, capture_output=True, check=True)
    assert found.stdout.split() == [b"1", b"PASSIVE"]


@pytest.mark.parametrize(("processes", "threads"), [(2, "6"), (5, "2"), (40, "1")])
def test_threads_of_the_launcher(machine, monkeypatch, processes, threads):
    machine(12)
    tool = load_tool("dist_launch")
    tool.share_cores(processes)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == threads
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    tool.share_cores(processes)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_freed_memory_is_kept():
    """Counted by the system: pages that a process had to ask for."""
    code = (
        "import resource, sys, numpy as np; sys.path.insert(0, sys.argv[1])\n"
        "from runpy import run_path\n"
        "if sys.argv[2] == 'keep':\n"
        "    keep = run_path(sys.argv[1] + '/mmaction_mbcd/cores.py')\n"
        "    assert keep['keep_freed_memory']()\n"
        "def work():\n"
        "    parts = [np.ones(1 << 18) for _ in range(8)]  # 2 MB each\n"
        "for _ in range(3): work()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): work()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {}
    for what in ("keep", "leave"):
        line = [sys.executable, "-c", code, str(ROOT), what]
        done = subprocess.run(line, capture_output=True, check=True, text=True)
        faults[what] = int(done.stdout)
    assert faults["keep"] < 100 < 10_000 < faults["leave"]


def test_training_keeps_more_than_data_workers():
    """Tensors of 20 MB, as an optimizer makes of one parameter after another."""
    code = (
        "import ctypes, resource, runpy, sys\n"
        "keep = runpy.run_path(sys.argv[1] + '/mmaction_mbcd/cores.py')\n"
        "assert keep[sys.argv[2]]()\n"
        "library = ctypes.CDLL(None)\n"
        "library.malloc.restype = ctypes.c_void_p\n"
        "def work():\n"
        "    part = library.malloc(ctypes.c_size_t(20 << 20))\n"
        "    ctypes.memset(part, 1, 20 << 20)\n"
        "    library.free(ctypes.c_void_p(part))\n"
        "for _ in range(3): work()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): work()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = []
    for what in ("keep_freed_memory", "keep_freed_memory_of_a_worker"):
        line = [sys.executable, "-c", code, str(ROOT), what]
        done = subprocess.run(line, capture_output=True, check=True, text=True)
        faults.append(int(done.stdout))
    assert faults[0] < 100 < 40_000 < faults[1]


def test_the_users_allocation_holds(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not cores.keep_freed_memory()
    assert not cores.keep_freed_memory_of_a_worker()
