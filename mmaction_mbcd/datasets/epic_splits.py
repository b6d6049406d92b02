"""EPIC-Kitchens' annotation files, read without trusting them.

The MM-SADA splits (Munro and Damen, CVPR 2020) are pickles. A pickle is a program: it
names Python functions and calls them. So they are read by an unpickler that knows the
few functions these files need and refuses every other one by its name. Better still,
``tools/data/epic/convert_splits.py`` turns them into CSV files once, and nobody
unpickles anything afterwards.
"""

import csv
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from os import path as osp

import numpy as np

CLASSES = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
"""By id. The paper lists "put" first; the ids say otherwise."""

PARTICIPANTS = {"D1": "P08", "D2": "P01", "D3": "P22"}
"""Whose kitchen each domain is."""

SPLITS = ("train", "test")
SUFFIXES = (".csv", ".pkl")

_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
_VIDEO = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class EpicSegment:
    """One row: an action in a video. The fields are the columns of the files.

    Attributes:
        uid: Number of the row, unique over all splits.
        participant_id: ``P08`` ...
        video_id: ``P08_01`` ...
        narration: What the participant said.
        start_timestamp: ``HH:MM:SS.ff``.
        stop_timestamp: ``HH:MM:SS.ff``.
        start_frame: First RGB frame, at 60 frames per second.
        stop_frame: The frame after the last one.
        verb: Of the narration; several verbs make a class.
        verb_class: Index into :data:`CLASSES`.
    """

    uid: int
    participant_id: str
    video_id: str
    narration: str
    start_timestamp: str
    stop_timestamp: str
    start_frame: int
    stop_frame: int
    verb: str
    verb_class: int

    @property
    def start(self) -> float:
        """Start in seconds."""
        return seconds(self.start_timestamp)

    @property
    def stop(self) -> float:
        """Stop in seconds."""
        return seconds(self.stop_timestamp)


COLUMNS = tuple(field.name for field in fields(EpicSegment))
# Nothing is computed from these two.
_OPTIONAL = ("narration", "verb")


def seconds(timestamp: str) -> float:
    """``HH:MM:SS.ff`` in seconds.

    Raises:
        ValueError: If it is not of that form.
    """
    match = _TIME.fullmatch(str(timestamp).strip())
    if not match:
        raise ValueError(f"{timestamp!r} is no time HH:MM:SS.ff")
    hours, minutes, rest = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def _admitted() -> dict[tuple[str, str], Callable]:
    """The globals that a split file may name.

    The published files (protocol 4, an old pandas) name eight. Besides, the names
    are admitted under which older and newer versions of pandas and NumPy keep the
    same things, for files that were saved again. All of them only build arrays and
    tables.
    """
    # pandas takes half a second to import; a CSV does without it.
    import pandas as pd
    from pandas._libs.internals import _unpickle_block
    from pandas.core.indexes.base import _new_Index
    from pandas.core.internals.managers import BlockManager

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


class _RefusedError(pickle.UnpicklingError):
    """A global that is not admitted."""


class _SplitUnpickler(pickle.Unpickler):
    """Loads a table and nothing else."""

    def __init__(self, file, path: str) -> None:
        super().__init__(file)
        self._path, self._admitted = path, _admitted()

    def find_class(self, module: str, name: str) -> Callable:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise _RefusedError(
                f"{self._path} names {module}.{name}, which an annotation file has "
                "no use for: it is refused, and nothing of it was called. Fetch the "
                "file again from its publisher (a table that newer software saved "
                "may be given as CSV)"
            ) from None


def _pickled_rows(path: str) -> list[tuple[str, dict]]:
    import pandas as pd

    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            # pandas would announce that it reads an old format.
            warnings.simplefilter("ignore")
            table = _SplitUnpickler(file, path).load()
    except (FileNotFoundError, _RefusedError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"{path} cannot be unpickled ({type(error).__name__}: {error}). Fetch the "
            "file again"
        ) from error
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"{path} holds a {type(table).__name__}; expected a pandas DataFrame"
        )
    _check_columns(path, [str(c) for c in table.columns])
    rows = table.to_dict("records")
    return [(f"{path}, row {i}", row) for i, row in enumerate(rows)]


def _csv_rows(path: str) -> list[tuple[str, dict]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            _check_columns(path, reader.fieldnames or [])
            rows = []
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: expected {len(reader.fieldnames)} fields, as the "
                        "first line has"
                    )
                rows.append((where, row))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from error
    return rows


def _check_columns(path: str, columns: Sequence[str]) -> None:
    missing = [c for c in COLUMNS if c not in columns and c not in _OPTIONAL]
    if missing:
        raise ValueError(
            f"{path} lacks the column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, columns)) or 'none'}"
        )
    double = sorted({c for c in columns if list(columns).count(c) > 1})
    if double:
        raise ValueError(f"{path} has the column {double[0]!r} twice")


def _is_nan(value: object) -> bool:
    if value is None or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str) and value.strip().lower() in ("", "nan")


def _integer(where: str, column: str, value: object) -> int:
    if _is_nan(value):
        raise ValueError(f"{where}: {column} is missing (NaN)")
    try:
        # A column of integers with one NaN in it is stored as floats.
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: {column} {value!r} is no integer") from None
    return int(number)


def _text(where: str, column: str, value: object) -> str:
    if _is_nan(value):
        if column in _OPTIONAL:
            return ""
        raise ValueError(f"{where}: {column} is missing (NaN)")
    return str(value)


def _segment(where: str, row: Mapping, classes: Sequence[str]) -> EpicSegment:
    values = {}
    for field in fields(EpicSegment):
        parse = _integer if field.type is int else _text
        values[field.name] = parse(where, field.name, row.get(field.name))
    segment = EpicSegment(**values)
    if not 0 <= segment.verb_class < len(classes):
        raise ValueError(
            f"{where}: verb_class {segment.verb_class} is none of the {len(classes)} "
            f"classes (0 to {len(classes) - 1}: {', '.join(classes)})"
        )
    if not _VIDEO.fullmatch(segment.video_id):
        raise ValueError(
            f"{where}: video_id {segment.video_id!r} is not the name of a video; "
            "paths that lead elsewhere are refused"
        )
    try:
        start, stop = segment.start, segment.stop
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if segment.start_frame < 0:
        raise ValueError(f"{where}: start_frame {segment.start_frame} is negative")
    if segment.stop_frame <= segment.start_frame:
        raise ValueError(
            f"{where}: stop_frame {segment.stop_frame} is not after start_frame "
            f"{segment.start_frame}"
        )
    if stop <= start:
        raise ValueError(
            f"{where}: stop_timestamp {segment.stop_timestamp} is not after "
            f"start_timestamp {segment.start_timestamp}"
        )
    return segment


def read_split(path: str, classes: Sequence[str] = CLASSES) -> list[EpicSegment]:
    """Reads and checks one annotation file.

    Args:
        path: ``.pkl`` (as published) or ``.csv`` (as :func:`write_csv` makes it).
        classes: Names of the labels; ``verb_class`` must index them.

    Returns:
        list[EpicSegment]: In the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the pickle names anything but tables and arrays;
            the error names it, and it has not been called.
        ValueError: If the file is damaged, lacks a column, or has a row with a missing
            value, an unknown label, a stop that is not after the start, or the uid of
            another row. The error names the file and the row: the line of a CSV, or
            the row of the table, counted from 0.
    """
    path = os.fspath(path)
    if path.endswith(".csv"):
        rows = _csv_rows(path)
    elif path.endswith(".pkl"):
        rows = _pickled_rows(path)
    else:
        raise ValueError(f"{path}: an annotation file ends with .pkl or .csv")
    segments, seen = [], {}
    for where, row in rows:
        segment = _segment(where, row, classes)
        if segment.uid in seen:
            first = seen[segment.uid].removeprefix(f"{path}, ")
            raise ValueError(f"{where}: uid {segment.uid} stands in {first} already")
        seen[segment.uid] = where
        segments.append(segment)
    return segments


def split_file(folder: str, domain: str, split: str) -> str:
    """The file of one split: the CSV if there is one, else the pickle's path."""
    paths = [osp.join(folder, f"{domain}_{split}{suffix}") for suffix in SUFFIXES]
    return next(filter(osp.isfile, paths), paths[-1])


def read_splits(folder: str, suffix: str = ".pkl") -> dict[str, list[EpicSegment]]:
    """Reads the six files of a folder and checks that no row stands in two.

    Args:
        folder: Where ``D1_train.pkl`` ... ``D3_test.pkl`` are.
        suffix: ``'.pkl'`` or ``'.csv'``.

    Returns:
        dict[str, list[EpicSegment]]: By name, ``'D1_train'`` ...

    Raises:
        FileNotFoundError: Naming every missing file.
        pickle.UnpicklingError, ValueError: As in :func:`read_split`.
    """
    names = [f"{domain}_{split}" for domain in PARTICIPANTS for split in SPLITS]
    paths = {name: osp.join(folder, name + suffix) for name in names}
    missing = [osp.basename(p) for p in paths.values() if not osp.isfile(p)]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    splits = {name: read_split(path) for name, path in paths.items()}
    owner = {}
    for name, segments in splits.items():
        for segment in segments:
            first = owner.setdefault(segment.uid, name)
            if first != name:
                raise ValueError(
                    f"uid {segment.uid} stands in {paths[first]} and in {paths[name]}: "
                    "a split would be tested on what another one trains on"
                )
    return splits


def write_csv(segments: Iterable[EpicSegment], path: str) -> None:
    """Writes one split as CSV with a header; the file appears complete or not at all.

    Args:
        segments: The rows.
        path: A ``.csv`` file; one that exists is replaced.
    """
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(map(astuple, segments))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)
