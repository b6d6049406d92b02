"""Scripts in processes forked from one that has done the imports, and nothing else.

Importing MMAction2 takes five to ten seconds of CPU; whoever starts many tools would
spend much of the time there. A forked process is a real one: it can be killed, can
hang, can leave children behind, and each starts in the same state.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

from .processes import end_with_parent, end_with_pipe

IMPORTS = (
    "mmaction_mbcd.cli",
    "mmaction_mbcd.analysis.curves",
    "mmpretrain.models",
    "av",
)
"""What the tools import."""

CONTEXT = multiprocessing.get_context("forkserver")

# multiprocessing looks at its processes when it starts another one. Of two threads that
# look at once, the second finds the pipe read, and takes it for exit code 255. Starting
# changes the environment for a moment, too.
_looking = threading.Lock()


def prepare(threads: int | None = None, imports: Sequence[str] = IMPORTS) -> None:
    """Starts the process that imports, unless it runs; there is one for all.

    Args:
        threads: OpenMP threads of what is forked; libraries read it as they are
            loaded. The environment's if None.
        imports: Modules.
    """
    CONTEXT.set_forkserver_preload(list(imports))
    start_server({} if threads is None else {"OMP_NUM_THREADS": str(threads)})


def start_server(environment: Mapping[str, str] | None = None) -> None:
    """Starts the process that forks others, so that these can use a GPU.

    MMEngine looks for GPUs as it is imported, and torch's usual look starts CUDA, which
    then is of no use in a process that is forked. With NVML it only looks.
    """
    with _looking:
        _start_server(environment or {})


def _start_server(environment: Mapping[str, str]) -> None:
    with _environment({"PYTORCH_NVML_BASED_CUDA_CHECK": "1", **environment}):
        forkserver.ensure_running()


@contextmanager
def _environment(changes: Mapping[str, str]):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start_script(
    script: str | os.PathLike,
    args: Sequence[object],
    stdout: str | os.PathLike,
    stderr: str | os.PathLike | None = None,
    *,
    cwd: str | os.PathLike | None = None,
    env: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> BaseProcess:
    """Starts ``python SCRIPT ARGS``, which ends when this process does.

    Args:
        script: Path of a Python script.
        args: Its command line.
        stdout: File for its output.
        stderr: File for its errors; that of the output if None.
        cwd: Folder to run it in; this process's if None.
        env: Changes of this process's environment.
        threads: OpenMP threads; the environment's if None.

    Returns:
        The process, started.
    """
    argv = [os.fspath(script), *map(str, args)]
    files = [os.path.abspath(path) for path in (stdout, stderr or stdout)]
    with _looking:
        environment = {**os.environ, **(env or {})}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        process = CONTEXT.Process(
            target=_run, args=(argv, os.path.abspath(cwd or "."), environment, files)
        )
        _start_server({})
        process.start()
    return process


def exit_code(process: BaseProcess) -> int | None:
    """Of a started script, None while it runs; from any thread."""
    with _looking:
        return process.exitcode


def _start_anew(argv: list[str], environment: dict[str, str]) -> None:
    """This process as a new Python, which ends when it would have ended."""
    watched = multiprocessing.parent_process().sentinel
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one of the listing
            # Others would keep the process that forks alive.
            os.set_inheritable(int(name), int(name) in (1, 2, watched))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(sys.executable, [sys.executable, *argv], environment)


def _run(
    argv: list[str], cwd: str, environment: dict[str, str], files: list[str]
) -> None:
    end_with_parent()  # the process that forks
    # It lives as long as one of those that it has forked, and forks what it was asked
    # for by a process that is gone: the one that asked must be watched, too.
    end_with_pipe(multiprocessing.parent_process().sentinel)
    for descriptor, path in enumerate(files, start=1):
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(path, mode, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    import torch  # it is there already

    if torch.cuda._is_in_bad_fork():  # CUDA was started nevertheless: without NVML
        _start_anew(argv, environment)
    # What the imports left stays: no garbage collection need walk it (MMEngine's
    # datasets collect as they are built, 0.3 s each time).
    gc.freeze()
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(os.path.abspath(argv[0])), *filter(None, added)]
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:  # multiprocessing leaves by os._exit
        atexit._run_exitfuncs()
