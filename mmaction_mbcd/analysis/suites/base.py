"""What the suites share: their interface, tables, and accuracies with intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from ...evaluation.predictions import Predictions
from ..statistics import accuracy_interval, paired_difference
from .readings import Reading, Subject

ALL = "all"
"""Stands for every domain or every class in a table."""


@dataclass(frozen=True)
class Table:
    """One result of a suite.

    Attributes:
        name: Of its CSV file, without suffix.
        title: What it shows.
        data: Numbers; accuracies and rates are fractions.
        shown: The same for the terminal, as text; accuracies in percent.
        notes: Sentences below it.
    """

    name: str
    title: str
    data: pd.DataFrame
    shown: pd.DataFrame
    notes: Sequence[str] = ()


class Suite(ABC):
    """One way of evaluating: what it reads, and what it makes of the predictions."""

    name: ClassVar[str]

    @classmethod
    def needs_clean_alone(cls) -> bool:
        """Whether kept predictions of the clean data are all that it reads."""
        return cls.readings is Suite.readings

    def readings(self, subject: Subject) -> list[Reading]:
        """What has to be read: the clean data, unless a suite says more.

        Raises:
            UsageError: If the suite cannot be run on this model and data.
        """
        return [subject.clean()]

    @abstractmethod
    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """Its tables.

        Args:
            predictions: At least those that :meth:`readings` asks for.
            folder: Gets the figures.
        """


def title_of(head: str) -> str:
    """``'fused'`` for the fused head, whose name is empty."""
    return head or "fused"


def with_interval(correct: np.ndarray) -> dict[str, float]:
    """N, accuracy and Wilson's 95 % interval, fractions; NaN without clips.

    Args:
        correct: ``(N,)`` bool.
    """
    count = len(correct)
    if not count:
        return dict(N=0, top1=np.nan, low=np.nan, high=np.nan)
    top1 = float(np.mean(correct))
    low, high = accuracy_interval(top1, count)
    return dict(N=count, top1=top1, low=low, high=high)


def difference_to(
    own: np.ndarray, other: np.ndarray, sample_ids: np.ndarray
) -> dict[str, float]:
    """How much more often one evaluation is right than another one, clip by clip.

    Args:
        own: ``(N,)`` bool, right or not.
        other: ``(N,)`` bool, the same of the other one.
        sample_ids: ``(N,)``; a clip that stands there twice is one clip.

    Returns:
        difference, difference_low and difference_high, fractions, by
        :func:`.statistics.paired_difference` (95 %); NaN with fewer than two clips.
    """
    names = ("difference", "difference_low", "difference_high")
    if len(own) < 2:
        return dict.fromkeys(names, np.nan)
    _, clusters = np.unique(sample_ids, return_inverse=True)
    found = paired_difference([own[None]], [other[None]], [clusters])
    return dict(zip(names, (found.difference, found.low, found.high), strict=True))


def known_correct(predictions: Predictions, head: str, mask: np.ndarray) -> np.ndarray:
    """Whether a head is right, on those of some clips of which it says something.

    Args:
        predictions: ``N`` clips.
        head: Name of the head.
        mask: ``(N,)`` bool.
    """
    return predictions.correct(head)[mask & predictions.known(head)]


def by_domain(predictions: Predictions) -> Iterable[tuple[str, np.ndarray]]:
    """``(name, (N,) bool)`` of all clips together, and of each domain."""
    yield ALL, np.ones(len(predictions), bool)
    for domain in dict.fromkeys(predictions.domains):
        yield str(domain), predictions.domains == domain


def percent(value: float) -> str:
    """``'73.9'``; ``'-'`` for not-a-number."""
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def percent_interval(row: Mapping, value: str = "top1") -> str:
    """``'73.9 [67.0, 79.8]'``."""
    if np.isnan(row[value]):
        return "-"
    low, high = percent(row["low"]), percent(row["high"])
    return f"{percent(row[value])} [{low}, {high}]"


def signed_interval(row: Mapping, value: str = "difference") -> str:
    """``'-3.2 [-8.1, 1.7]'``, in percentage points."""
    if np.isnan(row[value]):
        return "-"
    ends = (row[value], row[f"{value}_low"], row[f"{value}_high"])
    middle, low, high = (f"{100 * each:+.1f}" for each in ends)
    return f"{middle} [{low}, {high}]"


def worth_showing(data: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of all domains together where there is only one."""
    single = data["domain"].nunique() == 2
    return data[data["domain"] != ALL] if single else data


def skipped_note(predictions: Predictions) -> list[str]:
    """Says how many clips could not be read, if any."""
    count = int(predictions.skipped.sum())
    return [f"{count} clips could not be read and are not in N."] if count else []
