"""torchrun for tools/dist_train.sh and dist_test.sh, with an end that one can read.

The options are torchrun's. It differs in how it ends: the first process's error is the
last line, Ctrl-C and SIGTERM leave no traceback, and when it is killed its processes
end, too. And each process gets its part of the cores for its OpenMP threads, not one
thread, unless OMP_NUM_THREADS is set.
"""

import logging
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import (
        ChildFailedError,
        ProcessFailure,
    )
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs torchrun; the exit code of the process that failed first."""
    # mmaction_mbcd.compat.LAUNCHER; importing it would take as long as a training's.
    os.environ["MBCD_LAUNCHER"] = str(os.getpid())
    # torch repeats each error in a table of its own, and says of signals what we say.
    logging.disable(logging.ERROR)
    args = run.parse_args(argv)
    share_cores(run.determine_local_world_size(args.nproc_per_node))
    try:
        run.run(args)
    except ChildFailedError as failed:
        rank, first = min(failed.failures.items(), key=lambda item: item[1].timestamp)
        print(f"process {rank}: error: {said(first)}", file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except KeyboardInterrupt:
        return 130
    return 0


def share_cores(processes: int) -> None:
    """Threads for each process, in the environment that it will have."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    # Without its package, whose import takes seconds.
    path = Path(__file__).resolve().parent.parent / "mmaction_mbcd" / "cores.py"
    threads = str(runpy.run_path(str(path))["own_cores"](processes))
    os.environ["OMP_NUM_THREADS"] = threads
    # MMEngine would make it one, and torch would take that for OpenMP's.
    os.environ.setdefault("MKL_NUM_THREADS", threads)


def said(failure: ProcessFailure) -> str:
    """What a process died of, in a line."""
    message = failure.error_file_data.get("message") if failure.error_file_data else ""
    if isinstance(message, dict):
        message = message.get("message") or ""
    if not message:
        return failure.message.splitlines()[0] + f" (exit code {failure.exitcode})"
    # torch writes 'UsageError: what it says'.
    return " ".join(str(message).split()).removeprefix("UsageError: ")


if __name__ == "__main__":
    sys.exit(main())
