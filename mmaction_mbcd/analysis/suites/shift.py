"""Accuracy under a Gaussian shift of one modality, the paper's Figure 1(b)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ...datasets.transforms.corruptions import insert_corruption
from ...evaluation.predictions import Predictions
from ..figures import (
    caption,
    colours,
    figure_style,
    panels,
    save_figure,
    shared_legend,
)
from .base import (
    Suite,
    Table,
    known_correct,
    percent,
    percent_interval,
    title_of,
    with_interval,
)
from .readings import CLEAN, Reading, Subject

_FOLDER = "shift"
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Standard deviations of the noise, in those of the clip; the paper names none."""


def measure_shift(
    variants: Mapping[tuple[str, float], Predictions], clean: Predictions
) -> pd.DataFrame:
    """Accuracy of every head against the level of the noise in one modality.

    Args:
        variants: ``{(modality, level): predictions}``.
        clean: Those of the data as they are: level 0 of every modality.

    Returns:
        Columns shifted, level, head, N, top1, low, high. Fractions.
    """
    names = list(dict.fromkeys(modality for modality, _ in variants))
    points = {(modality, 0.0): clean for modality in names} | dict(variants)
    rows = [
        dict(shifted=modality, level=level, head=title_of(head))
        | with_interval(known_correct(own, head, ~own.skipped))
        for (modality, level), own in sorted(
            points.items(), key=lambda each: (names.index(each[0][0]), each[0][1])
        )
        for head in own.logits
    ]
    return pd.DataFrame(rows)


def draw_shift(data: pd.DataFrame, path: Path, by: str = "head") -> list[Path]:
    """A panel for each shifted modality, a line for each head or run.

    Args:
        data: Of :func:`measure_shift`; with a column run, if lines are runs.
        path: Without suffix.
        by: ``'head'``, or ``'run'``: of the fused head.

    Returns:
        The files: ``.png``, ``.svg`` and ``.csv``.
    """
    whole, names = data, list(data["shifted"].unique())
    if by == "run":
        data = data[data["head"] == "fused"]
    lines = list(data[by].unique())  # the same colours in every panel
    palette = colours(lines)
    if by == "head":
        palette = colours([n for n in lines if n != "fused"]) | {"fused": "black"}
    places = {level: place for place, level in enumerate(sorted(set(data["level"])))}
    with figure_style():
        figure, axes = panels(1, len(names), sharey=True)
        for ax, name in zip(axes[0], names, strict=True):
            _draw_lines(ax, data[data["shifted"] == name], by, places, palette)
            ax.set_title(f"noise in {name}")
            ax.set_xlabel("shift level (noise / signal)")
        axes[0, 0].set_ylabel("top-1 %")
        shared_legend(figure, axes.flat)
        count = data["N"].iloc[0]
        caption(figure, f"In standard deviations. N = {count}, band: 95 % interval.")
        return save_figure(figure, path, whole)


def _draw_lines(
    ax: Axes,
    own: pd.DataFrame,
    by: str,
    places: Mapping[float, int],
    palette: Mapping[str, str],
) -> None:
    for name in own[by].unique():
        rows = own[own[by] == name]
        x = [places[level] for level in rows["level"]]
        banded = by == "run" or name == "fused"
        ax.plot(x, 100 * rows["top1"], "o-", ms=3, lw=2 if banded else 1.2,
                color=palette[name], label=name)  # fmt: skip
        if banded:
            ax.fill_between(x, 100 * rows["low"], 100 * rows["high"], alpha=0.12, lw=0,
                            color=palette[name])  # fmt: skip
    # Equal steps: levels that double would crowd on the left.
    ax.set_xticks(list(places.values()), [f"{level:g}" for level in places])
    ax.set_ylim(0, 100)


def pipelines(
    subject: Subject, levels: Sequence[float], seed: int = 0
) -> Iterator[tuple[tuple[str, float], list]]:
    """Test pipelines with noise in one modality.

    Args:
        subject: Whose test data they are for.
        levels: Ratios of the noise's standard deviation to the clip's own.
        seed: Of the noise.

    Yields:
        ``(modality, level)`` and the transforms of that modality.
    """
    for modality in subject.modalities:
        clean, kind = subject.pipelines[modality], subject.kind(modality)
        for level in levels:
            noise = dict(type="GaussianShift", level=level, seed=seed)
            yield (modality, level), insert_corruption(clean, kind, noise)


@dataclass
class ModalityShift(Suite):
    """Gaussian noise in the input of one modality at a time, the others clean.

    What the noise is added to, and in what units, the paper does not say; see
    :class:`.GaussianShift` for what is done here.

    Args:
        levels: Ratios of the noise's standard deviation to the clip's own.
        seed: Of the noise.
    """

    levels: Sequence[float] = LEVELS
    seed: int = 0

    name = "shift"

    def readings(self, subject: Subject) -> list[Reading]:
        """The clean data, and every level in every modality."""
        readings = [subject.clean()]
        for (modality, level), pipeline in pipelines(subject, self.levels, self.seed):
            name = _file_of(modality, level)
            readings.append(subject.changed(name, modality, pipeline))
        return readings

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """Accuracy by shifted modality, level and head."""
        clean = predictions[CLEAN]
        variants = {
            (modality, level): predictions[_file_of(modality, level)]
            for modality in clean.modalities
            for level in self.levels
        }
        data = measure_shift(variants, clean)
        draw_shift(data, folder / "shift")
        title = "Gaussian modality shift: top-1 % (fused with 95 % interval)"
        notes = ["level: standard deviation of the noise / that of the clip's input."]
        return [Table("shift", title, data, _shown(data), notes)]


def _file_of(modality: str, level: float) -> str:
    return f"{_FOLDER}/{modality}/{level:g}"


def _shown(data: pd.DataFrame) -> pd.DataFrame:
    keys = ["shifted", "level"]
    shown = data.loc[data["head"] == "fused", keys].rename(
        columns={"shifted": "noise in"}
    )
    shown["level"] = shown["level"].map("{:g}".format)
    for head, own in data.groupby("head", sort=False):
        show = percent_interval if head == "fused" else lambda row: percent(row["top1"])
        shown[head] = [show(row) for _, row in own.iterrows()]
    return shown
