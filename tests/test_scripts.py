"""Forked processes on machines with a GPU, pretended."""

import os
import subprocess
import sys

import pytest

FORKS = """
import sys
from mmaction_mbcd import scripts

if __name__ == "__main__":
    scripts.prepare(imports=["noted"])
    process = scripts.start_script(sys.argv[1], ["a", "b"], sys.argv[2], env={"C": "d"})
    process.join()
    sys.exit(process.exitcode)
"""

NOTED = """
import os
SEEN = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
"""

STARTED = """
import torch
torch.cuda._is_in_bad_fork = lambda: True
"""

SCRIPT = """
import os, sys
noted = sys.modules.get("noted")
print(sys.argv[1:], os.environ["C"], noted and noted.SEEN,
      os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"))
sys.exit(3)
"""


@pytest.mark.parametrize("cuda_was_started", [False, True])
def test_a_forked_script_can_use_a_gpu(tmp_path, cuda_was_started):
    """The imports look at GPUs by NVML; where CUDA was started, it is a new process."""
    noted = NOTED + (STARTED if cuda_was_started else "")
    for name, text in dict(noted=noted, forks=FORKS, script=SCRIPT).items():
        (tmp_path / f"{name}.py").write_text(text)
    out = tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH")}
    done = subprocess.run(
        [sys.executable, "forks.py", "script.py", out],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    seen = "None" if cuda_was_started else "1"
    assert out.read_text() == f"['a', 'b'] d {seen} None\n"
