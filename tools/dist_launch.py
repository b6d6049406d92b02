"""torchrun for tools/dist_train.sh and dist_test.sh, with an end that one can read.

The options are torchrun's. It differs in how it ends: the first process's error is the
last line, Ctrl-C and SIGTERM leave no traceback, and when it is killed its processes
end, too.
"""

import logging
import os
import sys
from collections.abc import Sequence

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
    try:
        run.run(run.parse_args(argv))
    except ChildFailedError as failed:
        rank, first = min(failed.failures.items(), key=lambda item: item[1].timestamp)
        print(f"process {rank}: error: {said(first)}", file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except KeyboardInterrupt:
        return 130
    return 0


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
