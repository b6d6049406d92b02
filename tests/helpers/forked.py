"""Scripts in processes that are forked from one which has done the imports."""

import subprocess
import tempfile
from pathlib import Path

from mmaction_mbcd import scripts

scripts.CONTEXT.set_forkserver_preload(
    [
        *scripts.IMPORTS,
        "mmaction_mbcd.preparation.check",
        "mmaction_mbcd.experiments.leave_one_out",
        "mmaction_mbcd.analysis.figure_kinds",
    ]
)


def run_script(script, *args, cwd, timeout=300, env=None):
    """Runs a Python script as ``python SCRIPT ARGS`` would.

    Args:
        script: Path of the script.
        args: Its command line.
        cwd: Folder to run it in.
        timeout: Seconds, after which it is killed.
        env: Changes of the environment.

    Returns:
        subprocess.CompletedProcess: With ``stdout`` and ``stderr`` as text.

    Raises:
        subprocess.TimeoutExpired: Once it is killed.
    """
    argv = [str(script), *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = scripts.start_script(script, args, *outputs, cwd=cwd, env=env)
        process.join(timeout)
        hangs = process.exitcode is None
        if hangs:
            process.kill()
            process.join()
        stdout, stderr = (p.read_text() if p.exists() else "" for p in outputs)
    if hangs:
        raise subprocess.TimeoutExpired(argv, timeout, stdout, stderr)
    return subprocess.CompletedProcess(argv, process.exitcode, stdout, stderr)
