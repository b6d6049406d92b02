"""EPIC-Kitchens' split files: one CSV file per domain and split.

The MM-SADA splits (Munro and Damen, CVPR 2020) are published as pickles;
``tools/data/epic/convert_splits.py`` turns them into these CSV files, once.
"""

import functools
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from .annotation_text import read_text
from .errors import AnnotationError

if TYPE_CHECKING:
    import pandas as pd

CLASSES = ("take", "put", "open", "close", "wash", "cut", "mix", "pour")
"""By id. The paper lists "put" first; the ids say otherwise."""

PARTICIPANTS = {"D1": "P08", "D2": "P01", "D3": "P22"}
"""Whose kitchen each domain is."""

SPLITS = ("train", "test")

_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


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
_OPTIONAL = ("narration", "verb")  # nothing is computed from them
_INTEGERS = tuple(field.name for field in fields(EpicSegment) if field.type is int)


def seconds(timestamp: str) -> float:
    """``HH:MM:SS.ff`` in seconds; NaN if it is not of that form."""
    match = _TIME.fullmatch(timestamp.strip())
    if not match:
        return float("nan")
    hours, minutes, rest = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def read_split(
    path: str | os.PathLike, classes: Sequence[str] = CLASSES
) -> list[EpicSegment]:
    """The rows of one CSV file, checked against the names of the labels.

    A file that has not changed is not read again: a run asks for a domain's test split
    three times.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a CSV file in UTF-8, or see :func:`check_segments`.
    """
    state = os.stat(path)
    key = (state.st_ino, state.st_size, state.st_mtime_ns)
    return list(_read_split(os.fspath(path), tuple(classes), key))


@functools.lru_cache(maxsize=8)
def _read_split(
    path: str, classes: tuple[str, ...], key: tuple[int, ...]
) -> tuple[EpicSegment, ...]:
    import pandas as pd  # takes time, and only EPIC-Kitchens needs it

    try:
        # Without a header and with empty lines: a row's number is its line's.
        table = pd.read_csv(
            io.StringIO(read_text(path)),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise AnnotationError(
            f"{path} is not a CSV file: {str(error).strip()}"
        ) from None
    table.columns = table.iloc[0].tolist()
    table.index = [f"line {number}" for number in range(1, len(table) + 1)]
    table = table[1:]
    return tuple(check_segments(table[(table != "").any(axis=1)], path, classes))


def check_segments(
    table: "pd.DataFrame", path: str | os.PathLike, classes: Sequence[str] = CLASSES
) -> list[EpicSegment]:
    """Checks the rows of a split.

    Args:
        table: Of strings. Its index says where each row is, such as ``'line 2'``.
        path: The file, for errors.
        classes: Names of the labels; ``verb_class`` indexes them.

    Raises:
        ValueError: If a column is missing, or a row has a missing value, an unknown
            label, a stop that is not after the start, or the uid of another row. The
            error names the file and the row.
    """
    import pandas as pd

    columns = table.columns.tolist()
    missing = [c for c in COLUMNS if c not in columns and c not in _OPTIONAL]
    if missing:
        raise AnnotationError(
            f"{path} lacks the column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, columns))}"
        )
    for column in columns:
        if columns.count(column) > 1:
            raise AnnotationError(f"{path} has the column {column!r} twice")
    table = table.reindex(columns=list(COLUMNS), fill_value="")

    def require(good: "pd.Series", message: str) -> None:
        if not good.all():
            row = table[~good].iloc[0]
            raise AnnotationError(f"{path}, {row.name}: {message.format(**row)}")

    for column in COLUMNS:
        given = ~table[column].str.strip().str.lower().isin(["", "nan"])
        table[column] = table[column].where(given, "")
        if column not in _OPTIONAL:
            require(given, f"{column} is missing")
        if column in _INTEGERS:
            # A column of integers with one NaN in it is stored as floats.
            numbers = pd.to_numeric(table[column], errors="coerce")
            require(numbers % 1 == 0, f"{column} {{{column}!r}} is not an integer")
            table[column] = numbers.astype("int64")
    require(
        table["verb_class"].between(0, len(classes) - 1),
        f"verb_class {{verb_class}} is none of the {len(classes)} classes "
        f"(0 to {len(classes) - 1}: {', '.join(classes)})",
    )
    require(
        table["video_id"].str.fullmatch(r"\w+"),
        "video_id {video_id!r} is not the name of a video; paths that lead elsewhere "
        "are refused",
    )
    start = table["start_timestamp"].map(seconds)
    stop = table["stop_timestamp"].map(seconds)
    after = "{0} {{{0}}} is not after {1} {{{1}}}".format
    require(start.notna(), "{start_timestamp!r} is not a time HH:MM:SS.ff")
    require(stop.notna(), "{stop_timestamp!r} is not a time HH:MM:SS.ff")
    require(stop > start, after("stop_timestamp", "start_timestamp"))
    require(table["start_frame"] >= 0, "start_frame {start_frame} is negative")
    is_after = table["stop_frame"] > table["start_frame"]
    require(is_after, after("stop_frame", "start_frame"))
    require(~table["uid"].duplicated(), "uid {uid} stands in an earlier row already")
    return [EpicSegment(*row) for row in table.itertuples(index=False)]


def write_csv(segments: Iterable[EpicSegment], path: str | os.PathLike) -> None:
    """Writes one split with a header; the file appears complete or not at all."""
    import pandas as pd

    table = pd.DataFrame(map(astuple, segments), columns=list(COLUMNS))
    temporary = f"{path}.part"
    table.to_csv(temporary, index=False, lineterminator="\n")
    os.replace(temporary, path)
