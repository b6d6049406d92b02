"""Which clips have which modality, by one look at each file before anything is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import path as osp
from typing import NamedTuple

from mmengine.logging import print_log

from .errors import DataError


class AbsentModalityError(DataError, ValueError):
    """No clip of a domain and split has a modality that is in use."""


class Presence(NamedTuple):
    """How many clips of a domain and split lack a modality.

    Attributes:
        domain: Name of the domain.
        split: ``'train'`` or ``'test'``.
        modality: Name of the modality.
        absent: Clips that lack it.
        clips: Clips in all.
        example: Where that of the first clip that lacks it was looked for, or ``''``.
    """

    domain: str
    split: str
    modality: str
    absent: int
    clips: int
    example: str


def is_there(path: str) -> bool:
    """Whether something lies at a path, be it readable or not.

    A file that may not be looked at is there: reading it will say what is wrong.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def missing_path(row: Mapping, modality: str, looked_at: dict[str, bool]) -> str | None:
    """The first path of a modality that is not there, ``''`` if the row names none.

    None if all are there. Of images, one per frame, the row's first is looked at.

    Args:
        row: Of :meth:`.MultiModalDataset.rows`.
        modality: One of its modalities.
        looked_at: What is known of other paths; gets those of this row. Clips may
            share a file.
    """
    files = row["files"].get(modality)
    if files is None:
        return ""
    extras = row.get("extras", {}).get(modality, {})
    template = extras.get("filename_tmpl")
    for path in (files,) if isinstance(files, str) else files:
        if template and "start_index" in extras:
            path = osp.join(path, template.format(extras["start_index"]))
        if path not in looked_at:
            looked_at[path] = is_there(path)
        if not looked_at[path]:
            return path
    return None


def count_presence(
    rows: Sequence[Mapping], domain: str, split: str, modalities: Iterable[str]
) -> Iterator[Presence]:
    """Looks for the files of the rows of one domain and split."""
    looked_at: dict[str, bool] = {}
    for modality in modalities:
        missing = [
            path
            for row in rows
            if (path := missing_path(row, modality, looked_at)) is not None
        ]
        example = next(iter(missing), "")
        yield Presence(domain, split, modality, len(missing), len(rows), example)


def unadmitted(found: Iterable[Presence], absent_ok: Sequence[str]) -> list[Presence]:
    """Those of which no clip has the modality, though that was not admitted."""
    return [
        each
        for each in found
        if each.absent == each.clips and each.modality not in absent_ok
    ]


def refuse_absence(
    name: str, found: Sequence[Presence], modalities: Sequence[str], absent_ok: Sequence
) -> None:
    """Refuses a modality that no clip of a domain and split has.

    Args:
        name: Of the dataset.
        found: What was counted.
        modalities: Those in use.
        absent_ok: Those that may be absent altogether.

    Raises:
        AbsentModalityError: Naming all of them, and the ways out.
    """
    lost = unadmitted(found, absent_ok)
    if not lost:
        return
    lines = []
    for each in lost:
        where = f"; {each.example} is not there" if each.example else ""
        lines.append(
            f"none of the {each.clips} {each.split} clips of {each.domain!r} has "
            f"{each.modality}{where}"
        )
    names = list(dict.fromkeys(each.modality for each in lost))
    rest = [m for m in modalities if m not in names]
    without = f"leave it out (--modalities {' '.join(rest)}), or " if rest else ""
    raise AbsentModalityError(
        f"{name}: " + "; ".join(lines) + ". A folder that is misspelt looks like this: "
        "correct its name or data_root. If these clips really have none, "
        f"{without}admit it with absent_ok={names} of the datasets"
    )


def report_absence(name: str, found: Sequence[Presence], share: float) -> None:
    """Says, once, where more than a share of the clips lacks a modality."""
    if lines := list(absence_lines(found, share)):
        print_log(
            f"{name}: clips lack modalities: {'; '.join(lines)}",
            logger="current",
            level=logging.WARNING,
        )


def absence_lines(found: Iterable[Presence], share: float) -> Iterator[str]:
    """``audio is absent in 30 of the 120 train clips of 'animal' (25 %)``."""
    for each in found:
        if each.absent > share * each.clips:
            yield (
                f"{each.modality} is absent in {each.absent} of the {each.clips} "
                f"{each.split} clips of {each.domain!r} "
                f"({each.absent / each.clips:.0%})"
            )
