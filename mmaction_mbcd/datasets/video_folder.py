"""Your own videos: a folder and one table."""

import csv
import hashlib
import io
import json
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from os import path as osp

from mmaction.registry import DATASETS
from mmengine.logging import print_log

from .annotation_text import read_text
from .errors import AnnotationError, MissingFileError
from .multimodal_dataset import MultiModalDataset

ANNOTATIONS = "annotations.csv"
COLUMNS = ("file", "label", "domain")
TEST_SHARE = 0.2


@dataclass(frozen=True)
class VideoRow:
    """One row of ``annotations.csv``.

    Attributes:
        file: Path below ``videos/``, with forward slashes.
        label: Class name.
        domain: Domain name.
        split: ``'train'`` or ``'test'``.
        line: In the file, from 1.
    """

    file: str
    label: str
    domain: str
    split: str
    line: int


def read_annotations(path: str) -> list[VideoRow]:
    """Reads and checks ``annotations.csv``.

    Args:
        path: A CSV file with a header that names the columns file, label and domain, in
            any order, and perhaps split. Other columns are ignored.

    Returns:
        list[VideoRow]: In the order of the file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: All faults of the file, each with its line.
    """
    if not osp.isfile(path):
        raise MissingFileError(
            f"no annotations {path}: it is a CSV file with the columns "
            f"{', '.join(COLUMNS)} (and optionally split: train or test), one row for "
            "each video below videos/"
        )
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    header = [str(name).strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise AnnotationError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} "
            f"{', '.join(missing)}; its first line names {header}, and file, label "
            "and domain are needed"
        )
    rows, problems = [], []
    for fields in reader:
        values = {
            column: (fields.get(column) or "").strip() for column in (*COLUMNS, "split")
        }
        surplus = fields.get(reader.restkey)
        if not any(values.values()) and not surplus:
            continue
        row = VideoRow(line=reader.line_num, **values)
        fault = _fault(row, "split" in header)
        if surplus:
            fault = (
                f"it has {len(header) + len(surplus)} fields, and the header "
                f"{len(header)}; a comma within a field needs quotes around the field"
            )
        if fault:
            problems.append(f"line {row.line}: {fault}")
        rows.append(replace(row, file=row.file.replace("\\", "/")))
    problems += _repeated(rows)
    if not rows:
        problems.append("it has no rows")
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise AnnotationError(f"{path}:\n  " + "\n  ".join(problems[:20]) + more)
    return rows if "split" in header else _with_splits(rows)


def _fault(row: VideoRow, has_split: bool) -> str:
    for column in COLUMNS:
        value = getattr(row, column)
        if not value or value.lower() == "nan":
            return f"{column} is {value!r}; every video needs one"
    if "/" in row.domain or row.domain in (".", ".."):
        return f"the domain {row.domain!r} holds a slash"
    place = osp.normpath(row.file.replace("\\", "/"))
    if osp.isabs(place) or place.startswith("..") or not osp.splitext(place)[0]:
        return (
            f"{row.file!r} is not a path below videos/; paths that lead elsewhere are "
            "refused"
        )
    if has_split and row.split not in ("train", "test"):
        return f"split is {row.split!r}; it must be train or test"
    return ""


def _repeated(rows: list[VideoRow]) -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for row in rows:
        stem = osp.splitext(osp.normpath(row.file))[0]
        if stem in first:
            problems.append(
                f"line {row.line}: {row.file!r} stands in line {first[stem]} already "
                "(flow and sound are found by the name without its extension)"
            )
        first.setdefault(stem, row.line)
    return problems


def _with_splits(rows: list[VideoRow]) -> list[VideoRow]:
    """A fifth of every class of every domain is held out.

    Which clips these are follows from a hash of their names, so it is the same
    everywhere, and a new clip moves at most one other.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row.domain, row.label].append(row)
    test = set()
    for group in groups.values():
        group.sort(key=lambda r: hashlib.sha256(r.file.encode()).hexdigest())
        count = round(TEST_SHARE * len(group))
        if len(group) > 1:
            count = max(count, 1)
        test.update(row.file for row in group[:count])
    return [replace(row, split="test" if row.file in test else "train") for row in rows]


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers by value, before words."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


@DATASETS.register_module()
class VideoFolderDataset(MultiModalDataset):
    """A folder of videos with one CSV file that names class and domain of each.

    ::

        annotations.csv            file,label,domain[,split]
        videos/some/X.mp4
        flow/some/X_flow_x.mp4, X_flow_y.mp4   (tools/data/extract_flow.py)
        audio/some/X.wav                       (tools/data/extract_audio.py)

    Classes are the labels in alphabetical order (numbers by value). Without a column
    ``split`` a fifth of every class of every domain is held out, chosen by a hash of
    the file names. If several clips are cut from one recording, give the column, or
    validation will see what was trained on.

    Args:
        data_root: The folder.
        flow_short_side: Pixels of the shorter side of the pictures that flow should
            have been computed of; a warning says where ``flow/flow_settings.json``
            tells otherwise, or is not there. Flow is in pixels, so other sizes mean
            other values. None: any.
        kwargs: Of :class:`MultiModalDataset`; ``metainfo=dict(classes=[...])`` fixes
            the order of the classes.

    Raises:
        FileNotFoundError: If ``annotations.csv`` is missing.
        ValueError: For a faulty one, see :func:`read_annotations`, or a label that is
            none of the given classes.
    """

    METAINFO: dict = {}

    def __init__(
        self, data_root: str, flow_short_side: int | None = 256, **kwargs
    ) -> None:
        self._rows = read_annotations(osp.join(data_root, ANNOTATIONS))
        labels = {row.label for row in self._rows}
        classes = (kwargs.get("metainfo") or {}).get("classes", labels)
        unknown = sorted(labels - set(classes))
        if unknown:
            raise AnnotationError(
                f"{data_root}/{ANNOTATIONS} has labels {unknown} that are none of "
                f"the given classes {list(classes)}"
            )
        super().__init__(data_root=data_root, **kwargs)
        # Once in a training and once in a test.
        asked = flow_short_side is not None and self.use != "val"
        if asked and "flow" in self.modalities:
            self._check_flow_size(flow_short_side)

    def _check_flow_size(self, wanted: int) -> None:
        """Warns unless flow was computed of pictures of this size."""
        path = osp.join(self.data_root, "flow", "flow_settings.json")
        try:
            with open(path, encoding="utf-8") as file:
                made = json.load(file).get("short_side")
        except (OSError, ValueError, AttributeError):
            found = f"{path} does not say at which size flow was computed"
        else:
            if made == wanted:
                return
            size = f"a short side of {made} pixels" if made else "each video's own size"
            found = f"flow was computed at {size} ({path})"
        print_log(
            f"{found}, and {wanted} pixels are expected: flow is in pixels, so the "
            "same motion has other values. Compute it again with tools/data/"
            f"extract_flow.py --short-side {wanted} --overwrite, or set "
            "flow_short_side of the dataset",
            logger="current",
            level=logging.WARNING,
        )

    @classmethod
    def describe(cls, data_root: str) -> dict:
        """Classes and domains that occur in the table."""
        rows = read_annotations(osp.join(data_root, ANNOTATIONS))
        return dict(
            classes=tuple(sorted({row.label for row in rows}, key=_natural)),
            domains=tuple(dict.fromkeys(row.domain for row in rows)),
        )

    def annotation_file(self, domain: str, split: str) -> str:
        """The table, and which part of it."""
        path = osp.join(self.data_root, ANNOTATIONS)
        there = Counter((row.domain, row.split) for row in self._rows)
        return f"{path} (rows of {domain!r}: {dict(there)}; its {split} split)"

    def rows(self, domain: str, split: str) -> list[dict]:
        """The table's rows of one domain and split."""
        classes = self._metainfo["classes"]
        rows = []
        for row in self._rows:
            if (row.domain, row.split) != (domain, split):
                continue
            stem = osp.splitext(row.file)[0]
            flow = osp.join(self.data_root, "flow", stem)
            rows.append(
                dict(
                    sample_id=stem,
                    label=classes.index(row.label),
                    files=dict(
                        video=osp.join(self.data_root, "videos", row.file),
                        flow=(f"{flow}_flow_x.mp4", f"{flow}_flow_y.mp4"),
                        audio=osp.join(self.data_root, "audio", f"{stem}.wav"),
                    ),
                )
            )
        return rows
