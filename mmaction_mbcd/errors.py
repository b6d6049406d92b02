"""A request that cannot work: one line for the user, no traceback."""

import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """The command line asks for something that cannot work; the message says why."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a :class:`UsageError` into one line on stderr and exit code 2."""
    try:
        yield
    except UsageError as error:
        print(f"{osp.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def require_file(path: str, what: str) -> None:
    """Raises :class:`UsageError` unless ``path`` is a file, or a URL."""
    if "://" not in path and not osp.isfile(path):
        raise UsageError(f"{what} file not found: {path}")
