"""The worker pool: every item has an outcome, whatever happens to its process."""

import os
import time

import pytest

from helpers.pool_work import work
from mmaction_mbcd import progress, scripts
from mmaction_mbcd.parallel import (
    WorkerDiedError,
    WorkerTimeoutError,
    run_parallel,
)


def outcomes(items, workers, **kwargs):
    return {o.item: o for o in run_parallel(work, items, workers, **kwargs)}


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_values_and_errors(workers, threads):
    found = outcomes([*range(5), "raise"], workers, threads=threads)
    assert {i: found[i].value[0] for i in range(5)} == {i: i * i for i in range(5)}
    error = found.pop("raise").error
    assert type(error) is ValueError and str(error) == "seven"
    own = {found[i].value[1] == os.getpid() for i in range(5)}
    assert own == {threads or workers == 1}


def test_a_crash_and_a_hang_cost_only_themselves():
    left = []
    items = [1, "crash", 2, "hang", 3, "odd error", 4]
    found = outcomes(items, 2, timeout=6.0, abandoned=left.append)
    assert [found[i].value[0] for i in (1, 2, 3, 4)] == [1, 4, 9, 16]
    assert isinstance(found["crash"].error, WorkerDiedError)
    assert isinstance(found["hang"].error, WorkerTimeoutError)
    assert "6 s" in str(found["hang"].error)
    # An error that cannot travel is said, and is not taken for a crash.
    assert "OddError: ab" in str(found["odd error"].error)
    assert left.count("crash") == 2 and left.count("hang") == 2


def test_closing_ends_the_processes_and_names_what_they_did():
    left = []
    running = run_parallel(work, [3, "hang", "hang"], 2, abandoned=left.append)
    assert next(running).value[0] == 9
    begin = time.monotonic()
    running.close()
    assert time.monotonic() - begin < 10 and set(left) == {"hang"}


def test_processes_die_with_their_parent(tmp_path):
    code = (
        "import sys; sys.path.insert(0, {here!r})\n"
        "from helpers.pool_work import waits\n"
        "from mmaction_mbcd.parallel import run_parallel\n"
        "if __name__ == '__main__':\n"
        "    list(run_parallel(waits, [{mark!r}], 1, timeout=900))\n"
    )
    mark = tmp_path / "pid"
    here = os.path.dirname(__file__)
    script = tmp_path / "parent.py"
    script.write_text(code.format(here=here, mark=str(mark)))
    parent = scripts.start_script(script, [], tmp_path / "output")
    deadline = time.monotonic() + 90
    while not mark.exists() or not mark.read_text():
        assert time.monotonic() < deadline and parent.exitcode is None
        time.sleep(0.1)
    worker = int(mark.read_text())
    parent.kill()
    parent.join()
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.1)


def test_workers_count_into_one_meter():
    with progress.Meter("squares", "items", 4, workers=2) as meter:
        outcomes(range(4), 2, sender=meter.sender)
        deadline = time.monotonic() + 5
        while meter.done < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert meter.done == 4
