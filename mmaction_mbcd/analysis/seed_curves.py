"""Accuracy over training, averaged over seeds: who is ahead, and from when on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

from .figures import caption, colours, figure_style, panels, save_figure, shared_legend

_TITLES = {"source": "source validation", "target": "unseen {}"}


def average_curves(
    curves: Mapping[str, Mapping[int, pd.DataFrame]], reference: str | None = None
) -> pd.DataFrame:
    """Mean over seeds and its interval, epoch by epoch.

    The interval is Student's, for the choice of seeds alone: all are evaluated on the
    same clips. An epoch has the seeds that were validated then.

    Args:
        curves: ``{method: {seed: frame}}``, frames of :func:`.read_curves`.
        reference: A method that the others are compared with, seed by seed.

    Returns:
        Columns method, quantity (``'source'`` or ``'target'``: fused accuracy;
        ``'difference'``: the target's to that of the reference), epoch, seeds, N (clips
        of the last validation; not of differences), mean, std (n - 1), low, high
        (95 %, cut at what can be). Fractions; the last three are not-a-number with
        one seed.
    """
    rows = []
    for method, own in curves.items():
        for role in _TITLES:
            found = {seed: frame.get(f"{role}/top1") for seed, frame in own.items()}
            counts = [n for frame in own.values() if f"{role}/N" in frame
                      for n in frame[f"{role}/N"].dropna()]  # fmt: skip
            rows += _averaged(method, role, found, counts)
        if reference in curves and method != reference:
            pairs = _differences(own, curves[reference])
            rows += _averaged(method, "difference", pairs, [])
    return pd.DataFrame(rows)


def _differences(
    own: Mapping[int, pd.DataFrame], other: Mapping[int, pd.DataFrame]
) -> dict[int, pd.Series]:
    return {
        seed: frame["target/top1"] - other[seed]["target/top1"]
        for seed, frame in own.items()
        if seed in other and "target/top1" in frame and "target/top1" in other[seed]
    }


def _averaged(
    method: str,
    quantity: str,
    found: Mapping[int, pd.Series | None],
    counts: list[float],
) -> list[dict]:
    known = {seed: values for seed, values in found.items() if values is not None}
    if not known:
        return []
    rows, least = [], -1.0 if quantity == "difference" else 0.0
    for epoch, values in pd.DataFrame(known).sort_index().iterrows():
        values = values.dropna().to_numpy()
        if not len(values):
            continue
        half = std = np.nan
        if len(values) > 1:
            std = values.std(ddof=1)
            half = t.ppf(0.975, len(values) - 1) * std / np.sqrt(len(values))
        rows.append(
            dict(method=method, quantity=quantity, epoch=int(epoch), seeds=len(values),
                 N=int(counts[-1]) if counts else np.nan, mean=values.mean(), std=std,
                 low=np.maximum(values.mean() - half, least),
                 high=np.minimum(values.mean() + half, 1.0))
        )  # fmt: skip
    return rows


def draw_seed_curves(
    data: pd.DataFrame,
    path: str | os.PathLike,
    reference: str | None = None,
    target_name: str = "target",
) -> list[Path]:
    """A panel for the sources, the target, and the difference to the reference.

    Args:
        data: Of :func:`average_curves`.
        path: Without suffix.
        reference: Name of the method that differences are to.
        target_name: For the title.

    Returns:
        The files.
    """
    shown = [q for q in (*_TITLES, "difference") if (data["quantity"] == q).any()]
    palette = colours(list(dict.fromkeys(data["method"])))
    with figure_style():
        figure, axes = panels(1, len(shown), 2.6, 3.2)
        for ax, quantity in zip(axes[0], shown, strict=True):
            own = data[data["quantity"] == quantity]
            for method, rows in own.groupby("method", sort=False):
                _draw_one(ax, rows, palette[method], method)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            _name(ax, quantity, own, reference, target_name)
        shared_legend(figure, axes.flat)
        caption(figure, _said(data))
        return save_figure(figure, path, data)


def _draw_one(ax: Axes, rows: pd.DataFrame, colour: str, name: str) -> None:
    ax.plot(rows["epoch"], 100 * rows["mean"], "o-", ms=2.5, lw=1.5, color=colour,
            label=name)  # fmt: skip
    ax.fill_between(rows["epoch"], 100 * rows["low"], 100 * rows["high"], color=colour,
                    alpha=0.15, lw=0)  # fmt: skip


def _name(
    ax: Axes,
    quantity: str,
    own: pd.DataFrame,
    reference: str | None,
    target_name: str,
) -> None:
    if quantity == "difference":
        ax.axhline(0, color="0.4", lw=0.8)
        ax.set_title(f"unseen {target_name}: above {reference}")
        ax.set_ylabel("points")
        return
    counts = own["N"].dropna()
    known = f" (N = {counts.iloc[0]:.0f})" if len(counts) else ""
    ax.set_title(_TITLES[quantity].format(target_name) + known)
    ax.set_ylabel("top-1 %")
    ax.set_ylim(0, 100)


def _said(data: pd.DataFrame) -> str:
    least, most = int(data["seeds"].min()), int(data["seeds"].max())
    seeds = f"{least}" if least == most else f"{least} to {most}"
    text = f"Mean of {seeds} seed{'s' * (most > 1)}"
    return (
        text
        + (
            "; band: 95 % interval for the choice of seeds, on the same clips."
            if most > 1
            else "."
        )
        + (" Where a seed ends, the mean is of the others." if least < most else "")
    )
