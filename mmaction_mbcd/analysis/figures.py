"""How every figure looks, and the files that it becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

OKABE_ITO = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999999",
    "#F0E442",
)  # fmt: skip
"""Colours that the common kinds of colour blindness tell apart (Okabe and Ito 2008)."""

COLUMN = 2.6
"""Inches that one panel is wide: three fill the text of a page, one half a column."""

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mmaction_mbcd",  # equal data give equal files
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Within it matplotlib draws as all figures of this package look."""
    with plt.rc_context(_STYLE):
        yield


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; beyond eight they are no longer colour-blind safe."""
    palette = OKABE_ITO
    if len(names) > len(palette):
        palette = [matplotlib.colors.to_hex(c) for c in plt.get_cmap("tab20").colors]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def panels(
    rows: int, columns: int, height: float = 2.2, width: float = COLUMN, **options
) -> tuple[Figure, np.ndarray]:
    """A figure of panels that share their axes.

    Args:
        rows: Of panels.
        columns: Of panels.
        height: Of a panel, inches.
        width: Of a panel, inches.
        options: Of :func:`matplotlib.pyplot.subplots`.

    Returns:
        The figure and its axes, ``(rows, columns)``.
    """
    return plt.subplots(
        rows,
        columns,
        figsize=(max(width * columns, 3.3), height * rows + 0.5),
        squeeze=False,
        layout="constrained",
        **options,
    )


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, each label once."""
    handles = {}
    for ax in axes:
        found = ax.get_legend_handles_labels()
        handles |= {label: h for h, label in zip(*found, strict=True)}
    width = sum(len(label) + 6 for label in handles)
    room = figure.get_figwidth() * 15  # characters of the legend's font
    rows = max(1, -(-width // int(room)))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=-(-len(handles) // rows),
    )


def caption(figure: Figure, text: str) -> None:
    """What is shown and of how many clips, in small print below, wrapped."""
    import textwrap

    room = int(figure.get_figwidth() * 20)
    figure.supxlabel("\n".join(textwrap.wrap(text, room)), fontsize=6, color="0.3")


def save_figure(
    figure: Figure, path: str | os.PathLike, data: pd.DataFrame
) -> list[Path]:
    """Writes a figure and the numbers that it shows, and closes it.

    Args:
        figure: To be written.
        path: Without suffix; its folder is made.
        data: What is drawn, one row per number.

    Returns:
        The files: ``.png``, ``.svg`` and ``.csv``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may have a dot of its own: with_suffix would cut it.
    files = [path.with_name(path.name + end) for end in (".png", ".svg", ".csv")]
    figure.savefig(files[0])
    figure.savefig(files[1], metadata={"Date": None})
    plt.close(figure)
    data.to_csv(files[2], index=False)
    return files
