"""Processes that are forked from one which has done the imports and nothing else.

Importing MMAction2 takes five to ten seconds of CPU; a suite that starts its tools in
hundreds of processes would spend most of its time there. A forked process is a real
one: it can be killed, can hang, can leave children behind, and it starts in the same
state each time.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "mmaction_mbcd.preparation.check",
        "mmaction_mbcd.experiments.leave_one_out",
        "mmpretrain.models",
        "matplotlib.pyplot",
        "av",
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
        process = FORK.Process(
            target=_run, args=(argv, str(cwd), dict(env or {}), *map(str, outputs))
        )
        process.start()
        process.join(timeout)
        hangs = process.exitcode is None
        if hangs:
            process.kill()
            process.join()
        stdout, stderr = (p.read_text() if p.exists() else "" for p in outputs)
    if hangs:
        raise subprocess.TimeoutExpired(argv, timeout, stdout, stderr)
    return subprocess.CompletedProcess(argv, process.exitcode, stdout, stderr)


def _run(argv, cwd, env, *outputs):
    for descriptor, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, descriptor)
    os.chdir(cwd)
    os.environ.update(env)
    import torch  # it is there already; a test module must not need it to be collected

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    added = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(os.path.abspath(argv[0])), *filter(None, added)]
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
