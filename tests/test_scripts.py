"""Forked processes on machines with a GPU, pretended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests_support import ROOT

# Without the package's own imports, which take seconds.
STUB = f"""
import sys, types
package = sys.modules["mmaction_mbcd"] = types.ModuleType("mmaction_mbcd")
package.__path__ = [{str(ROOT / "mmaction_mbcd")!r}]
"""

FORKS = (
    STUB
    + """
from mmaction_mbcd import scripts

if __name__ == "__main__":
    scripts.prepare(imports=["noted"])
    process = scripts.start_script(
        "script.py", sys.argv[1:], "out.txt", env={"C": "d"}
    )
    process.join()
    sys.exit(process.exitcode)
"""
)

NOTED = (
    STUB
    + """
import os
import torch
SEEN = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
"""
)

STARTED = """
torch.cuda._is_in_bad_fork = lambda: True
"""

SCRIPT = """
import os, sys, time
noted = sys.modules.get("noted")
print(sys.argv[1:], os.environ["C"], noted and noted.SEEN,
      os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"), os.getpid(), flush=True)
if "wait" in sys.argv:
    time.sleep(300)
sys.exit(3)
"""


@pytest.fixture(params=[False, True], ids=["nvml", "cuda was started"])
def anew(request, tmp_path):
    """Whether the script begins as a new process; its files."""
    noted = NOTED + (STARTED if request.param else "")
    for name, text in dict(noted=noted, forks=FORKS, script=SCRIPT).items():
        (tmp_path / f"{name}.py").write_text(text)
    return request.param


def start(folder, *args):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH")}
    return subprocess.Popen(
        [sys.executable, "forks.py", *args],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_forked_script_can_use_a_gpu(anew, tmp_path):
    """The imports look at GPUs by NVML; where CUDA was started, it is a new process."""
    process = start(tmp_path, "a", "b")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    text = (tmp_path / "out.txt").read_text()
    assert text.startswith(f"['a', 'b'] d {None if anew else 1} None "), text


def test_it_ends_with_who_asked_for_it(anew, tmp_path):
    process = start(tmp_path, "wait")
    out, limit = tmp_path / "out.txt", time.monotonic() + 120
    while not (out.exists() and out.read_text().endswith("\n")):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    number = int(out.read_text().split()[-1])
    process.send_signal(signal.SIGKILL)
    process.wait()
    limit = time.monotonic() + 20
    while runs(number):
        assert time.monotonic() < limit, "it goes on"
        time.sleep(0.1)


def runs(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False
