"""EPIC-Kitchens' published split files, read without trusting them.

The MM-SADA splits are pickles. A pickle is a program: it names Python functions and
calls them. So they are read by an unpickler that knows the few functions these files
need and refuses every other one by its name, and in a process of its own, since a
damaged file may ask for any amount of memory or crash the libraries that build the
table. They are turned into CSV files, which ``EPICKitchensDataset`` reads.
"""

import faulthandler
import json
import multiprocessing
import os
import pickle
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
from pandas._libs.internals import _unpickle_block
from pandas.core.indexes.base import _new_Index
from pandas.core.internals.managers import BlockManager

from ..datasets.epic_kitchens import EPICKitchensDataset
from ..datasets.epic_splits import (
    PARTICIPANTS,
    SPLITS,
    EpicSegment,
    check_segments,
    read_split,
    write_csv,
)

MEMORY = 256 << 20
"""Bytes that reading one file may take; for the largest published one 8 MiB do."""

SECONDS = 30.0
"""How long it may take; the largest published one takes less than a second."""

SPLIT_NAMES = tuple(f"{domain}_{split}" for domain in PARTICIPANTS for split in SPLITS)


def _admitted() -> dict[tuple[str, str], Callable]:
    """The globals that a split file may name.

    The published files (protocol 4, an old pandas) name eight. Besides, the names
    are admitted under which older and newer versions of pandas and NumPy keep the
    same things, for files that were saved again. All of them only build arrays and
    tables.
    """
    # NumPy 2 renamed numpy.core; an array says where its builders are now.
    reconstruct = np.empty(0).__reduce__()[0]
    frombuffer = np.empty(0).__reduce_ex__(5)[0]
    admitted = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("pandas.core.internals.managers", "BlockManager"): BlockManager,
        ("pandas.core.internals", "BlockManager"): BlockManager,
        ("pandas.core.indexes.base", "_new_Index"): _new_Index,
        ("pandas.indexes.base", "_new_Index"): _new_Index,
        ("pandas.core.index", "_new_Index"): _new_Index,
        ("pandas._libs.internals", "_unpickle_block"): _unpickle_block,
        # How pandas 1.3-2.x says which columns a block holds.
        ("builtins", "slice"): slice,
    }
    for core in ("numpy.core", "numpy._core"):
        admitted[f"{core}.multiarray", "_reconstruct"] = reconstruct
        admitted[f"{core}.numeric", "_frombuffer"] = frombuffer
    for module in ("pandas", "pandas.core.frame"):
        admitted[module, "DataFrame"] = pd.DataFrame
    for module in ("pandas", "pandas.core.indexes.base", "pandas.indexes.base"):
        admitted[module, "Index"] = pd.Index
    for module in ("pandas", "pandas.core.indexes.range", "pandas.indexes.range"):
        admitted[module, "RangeIndex"] = pd.RangeIndex
    for module in ("pandas.core.indexes.numeric", "pandas.indexes.numeric"):
        for name in ("Int64Index", "UInt64Index", "Float64Index"):
            admitted[module, name] = pd.Index
    return admitted


class _RefusedError(ValueError):
    """A global that is not admitted."""


class _SplitUnpickler(pickle.Unpickler):
    """Loads a table and nothing else."""

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return _admitted()[module, name]
        except KeyError:
            raise _RefusedError(
                f"it names {module}.{name}, which an annotation file has no use for, "
                "and nothing of it was called"
            ) from None


def read_pickle(path: str | os.PathLike) -> list[EpicSegment]:
    """Reads and checks one published split file, in a process of its own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it names anything but tables and arrays (it is not called), is
            damaged or holds something else, needs more than :data:`MEMORY` bytes or
            :data:`SECONDS` or crashes its reader, or see :func:`.check_segments`; rows
            count from 0.
    """
    with open(path, "rb") as file:  # its errors are the caller's
        size = os.fstat(file.fileno()).st_size
    if size > MEMORY // 8:
        raise ValueError(
            f"{path} is not a split file: it has {size:,} bytes, and the published "
            "ones less than a million"
        )
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # A copy of this process has all imports, and takes milliseconds to make.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        child = multiprocessing.get_context("fork").Process(
            target=_read_confined, args=(path, sender), daemon=True
        )
        child.start()
    sender.close()
    try:
        table = receiver.recv_bytes() if receiver.poll(SECONDS) else None
    except EOFError:
        table = b""
    finally:
        child.kill()
        child.join()
        receiver.close()
    again = "Fetch it again from its publisher"
    if table is None:
        raise ValueError(
            f"{path} is damaged: it was not read within {SECONDS} s. {again}"
        )
    if not table:
        raise ValueError(
            f"{path} is damaged: the process that read it died (a crash, or more than "
            f"{MEMORY >> 20} MiB). {again}"
        )
    answer = json.loads(table)
    if "error" in answer:
        raise ValueError(" ".join(answer["error"].split()))
    return _segments(answer, path)


def _segments(answer: dict[str, list], path: str | os.PathLike) -> list[EpicSegment]:
    table = pd.DataFrame(answer["rows"], columns=answer["columns"], dtype=str)
    table.index = [f"row {number}" for number in range(len(table))]
    return check_segments(table, path)


def _read_confined(path: str | os.PathLike, sender: Connection) -> None:
    """Sends the table as JSON text; dies of what goes beyond the limits."""
    # What a crash would print is of no use to anyone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 1, int(SECONDS) + 1))
    try:
        answer = _table(path)
    except ValueError as error:
        answer = dict(error=str(error))
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()
    os._exit(0)  # a damaged table may crash when it is taken apart


def _table(path: str | os.PathLike) -> dict[str, list]:
    """The file's columns and rows as text."""
    again = "Fetch it again from its publisher"
    with open(path, "rb") as file, warnings.catch_warnings():
        # pandas would announce that it reads an old format.
        warnings.simplefilter("ignore")
        try:
            table = _SplitUnpickler(file).load()
        except _RefusedError as error:
            raise ValueError(f"{path} is refused: {error}. {again}") from error
        except Exception as error:  # a damaged pickle raises anything
            raise ValueError(
                f"{path} is damaged: {type(error).__name__}: {error}. {again}"
            ) from error
        if not isinstance(table, pd.DataFrame):
            raise ValueError(
                f"{path} holds a {type(table).__name__}; expected a pandas DataFrame"
            )
        try:
            table = table.astype(object).where(table.notna(), "").astype(str)
            columns = table.columns.astype(str).tolist()
            return dict(columns=columns, rows=table.to_numpy().tolist())
        except Exception as error:  # a table of another shape than it says
            raise ValueError(
                f"{path} is damaged: {type(error).__name__}: {error}. {again}"
            ) from error


def read_splits(
    folder: str | os.PathLike, suffix: str = ".pkl"
) -> dict[str, list[EpicSegment]]:
    """Reads the six files of a folder and checks that no row stands in two.

    Args:
        folder: Where ``D1_train.pkl`` ... ``D3_test.pkl`` are.
        suffix: ``'.pkl'`` or ``'.csv'``.

    Returns:
        dict[str, list[EpicSegment]]: By name, ``'D1_train'`` ...

    Raises:
        FileNotFoundError: Naming every missing file.
        ValueError: As in :func:`read_pickle` or :func:`.read_split`.
    """
    paths = {name: Path(folder, name + suffix) for name in SPLIT_NAMES}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    read = read_pickle if suffix == ".pkl" else read_split
    splits = {name: read(path) for name, path in paths.items()}
    owner: dict[int, str] = {}
    for name, segments in splits.items():
        for segment in segments:
            first = owner.setdefault(segment.uid, name)
            if first != name:
                raise ValueError(
                    f"uid {segment.uid} stands in {paths[first]} and in {paths[name]}: "
                    "a split would be tested on what another one trains on"
                )
    return splits


@contextmanager
def converted(data_root: str | os.PathLike) -> Iterator[str]:
    """A data root whose split files can be read, for a look at the splits alone.

    Yields:
        ``data_root`` itself, or, where only EPIC-Kitchens' pickles lie in it, a
        temporary folder with CSV files instead and links to all else.

    Raises:
        FileNotFoundError, ValueError: As in :func:`read_splits`.
    """
    folder = Path(data_root, EPICKitchensDataset.SPLIT_FOLDER)
    if any(folder.glob("*.csv")) or not any(folder.glob("*.pkl")):
        yield str(data_root)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for entry in Path(data_root).resolve().iterdir():
            if entry.name != folder.name:
                Path(temporary, entry.name).symlink_to(entry)
        convert(read_splits(folder), Path(temporary, folder.name))
        yield temporary


def convert(splits: dict[str, list[EpicSegment]], folder: Path) -> None:
    """Writes one CSV file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, segments in splits.items():
        write_csv(segments, folder / f"{name}.csv")
