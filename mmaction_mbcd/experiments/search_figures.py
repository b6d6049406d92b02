"""Figures of a search: what its values do, and whether it was long enough."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from ..analysis.figures import (
    caption,
    colours,
    figure_style,
    panels,
    save_figure,
    shared_legend,
)

_NOTE = "Accuracy on the sources, which chooses; the target has no part in it."


def _places(frame: pd.DataFrame) -> pd.Series:
    """``'human, animal to cartoon'``, as far as it is known, and which search."""
    sources = frame.sources.where(frame.sources == "", frame.sources + " ")
    target = frame.target.where(frame.target != "", "all")
    named = sources + "to " + target
    if frame.search.nunique() > 1:
        named += ", search " + frame.search.astype(str)
    return named


def draw_values(points: pd.DataFrame, path: str | Path) -> list[Path]:
    """Validation against each hyper-parameter of one method; the chosen trials ringed.

    Args:
        points: From :func:`.search.points`, of one dataset, method and modalities.
        path: Without suffix.
    """
    points = points.assign(place=_places(points))
    names = list(points.hyper_parameter.unique())
    columns = min(4, len(names))
    with figure_style():
        figure, axes = panels(-(-len(names) // columns), columns, sharey=True)
        colour = colours(list(points.place.unique()))
        for ax, name in zip(axes.flat, names, strict=False):
            _scatter(ax, points[points.hyper_parameter == name], colour)
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("validation, top-1 %")
        shared_legend(figure, axes.flat)
        caption(figure, f"{_NOTE} Ringed: chosen.")
        return save_figure(figure, path, points.drop(columns="place"))


def _scatter(ax: Axes, points: pd.DataFrame, colour: dict) -> None:
    below_1 = (points.scale == "Below1").all()
    x = 1 - points.value if below_1 else points.value
    for place, own in points.groupby("place", sort=False):
        ax.scatter(
            x[own.index], 100 * own.validation, s=12, color=colour[place], label=place
        )
    chosen = points[points.chosen]
    ax.scatter(
        x[chosen.index],
        100 * chosen.validation,
        s=60,
        facecolors="none",
        edgecolors="k",
    )
    name = points.hyper_parameter.iloc[0]
    ax.set_xlabel(f"1 - {name}" if below_1 else name)
    if below_1 or (points.scale == "LogUniform").all():
        ax.set_xscale("log")


def draw_budget(curves: pd.DataFrame, path: str | Path) -> list[Path]:
    """The best validation so far, and dashed what random trials would reach on average.

    A panel per target, a line per method. Where the dashed lines still rise at the end,
    the budget was too small.

    Args:
        curves: From :func:`.search.by_budget`, of one dataset and modalities.
        path: Without suffix.
    """
    named = curves.assign(place=_places(curves))
    places = list(named.place.unique())
    columns = min(3, len(places))
    with figure_style():
        figure, axes = panels(
            -(-len(places) // columns), columns, sharex=True, sharey=True
        )
        colour = colours(list(named.method.unique()))
        for ax, place in zip(axes.flat, places, strict=False):
            for method, own in named[named.place == place].groupby(
                "method", sort=False
            ):
                line = dict(color=colour[method])
                ax.step(own.budget, 100 * own.best, where="post", label=method, **line)
                ax.plot(own.budget, 100 * own.expected, ls="--", lw=0.8, **line)
            ax.set_title(place)
            ax.set_xlabel("trials")
        for ax in axes.flat[len(places) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("best validation, top-1 %")
        shared_legend(figure, axes.flat)
        caption(figure, f"{_NOTE} Dashed: expected best of as many random trials.")
        return save_figure(figure, path, curves)
