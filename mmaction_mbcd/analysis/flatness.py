"""How fast the loss rises around the trained weights, the paper's Figure 3."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from .clips import HeldClips
from .directions import (
    filter_normalised,
    gaussian_direction,
    length,
    moved_along,
    perturbed_parameters,
    unit_direction,
)
from .figures import caption, colours, figure_style, panels, save_figure, shared_legend
from .trained import TrainedModel

TITLES = {"source": "source validation", "target": "unseen target"}


def loss_increases(
    trained: TrainedModel,
    losses: Callable[[], Mapping[str, float]],
    gammas: Sequence[float],
    directions: int = 10,
    seed: int = 0,
    by_filter: bool = False,
    advance: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    r"""Loss increases at distance gamma from the weights, one row per direction.

    .. math:: \mathcal{F}_\gamma(\theta) = \mathbb{E}_{\|\theta' - \theta\| = \gamma}
              [\mathcal{E}(\theta') - \mathcal{E}(\theta)]

    Cha et al. 2021 (SWAD), which the paper's Figure 3 follows: the mean over
    the rows of a gamma is its Monte-Carlo estimate. A direction is a standard normal
    vector divided by its length, that is uniform on the sphere. Each is walked both
    ways: the expectation is the same, and the slope, which is in neither, cancels
    instead of adding noise. All gammas go along the same directions.

    Args:
        trained: Its weights are moved and put back.
        losses: ``{role: loss}`` at the weights that the model has.
        gammas: Radii in the units of the weights; with ``by_filter`` multiples of each
            filter's own length.
        directions: How many.
        seed: Of the directions.
        by_filter: Directions by :func:`.filter_normalised` instead.
        advance: Called with 1 after each evaluation: two for each direction and gamma.

    Returns:
        Columns role, gamma, direction (a number), sign (1 or -1), loss and increase; a
        row of gamma 0 for each direction.
    """
    parameters = {k: v.clone() for k, v in perturbed_parameters(trained.model).items()}
    centre = losses()
    rows = []
    for number in range(directions):
        rows += [
            dict(
                role=role, gamma=0.0, direction=number, sign=1, loss=loss, increase=0.0
            )
            for role, loss in centre.items()
        ]
        direction = gaussian_direction(parameters, seed, number)
        if by_filter:
            direction = filter_normalised(direction, parameters)
        else:
            direction = unit_direction(direction)
        for gamma, sign in itertools.product(gammas, (1, -1)):
            with trained.moved(moved_along(parameters, (sign * gamma, direction))):
                found = losses()
            advance(1)
            rows += [
                dict(role=role, gamma=float(gamma), direction=number, sign=sign,
                     loss=loss, increase=loss - centre[role])
                for role, loss in found.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)


def measure_flatness(
    trained: TrainedModel,
    clips: Mapping[str, HeldClips],
    gammas: Sequence[float],
    **options: object,
) -> pd.DataFrame:
    """:func:`loss_increases` of the fused cross-entropy on clips.

    BatchNorm keeps its statistics (eval mode), and dropout is off.

    Args:
        trained: The evaluated weights: the teacher's where there is one.
        clips: ``{role: clips}``.
        gammas: See :func:`loss_increases`.
        options: Of the same.

    Returns:
        Its columns, and N (clips) and norm (length of the perturbed weights).
    """
    frame = loss_increases(
        trained,
        lambda: {role: held.loss(trained.model) for role, held in clips.items()},
        gammas,
        **options,
    )
    frame["N"] = frame["role"].map({role: len(held) for role, held in clips.items()})
    frame["norm"] = length(perturbed_parameters(trained.model))
    return frame


def flatness_summary(frame: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean increase over the directions, with Student's interval of that mean.

    Args:
        frame: Of :func:`measure_flatness`, with a column run.
        confidence: Coverage of the interval; it says how well the number of directions
            determines the mean, not how runs of other seeds differ.

    Returns:
        Columns run, role, gamma, mean, low, high, directions.
    """
    rows = []
    for (run, role, gamma), group in frame.groupby(
        ["run", "role", "gamma"], sort=False
    ):
        # Both ways of a direction are one sample.
        values = group.groupby("direction")["increase"].mean().to_numpy()
        half = 0.0
        if len(values) > 1:
            quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
            half = quantile * values.std(ddof=1) / np.sqrt(len(values))
        rows.append(
            dict(run=run, role=role, gamma=gamma, mean=values.mean(),
                 low=values.mean() - half, high=values.mean() + half,
                 directions=len(values))
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw_flatness(
    frame: pd.DataFrame, path: str | os.PathLike, by_filter: bool = False
) -> list[Path]:
    """A panel per role, a line with its band per run.

    Args:
        frame: Of :func:`measure_flatness`, with a column run; it is the figure's data.
        path: Without suffix.
        by_filter: How gamma is named on the axis.

    Returns:
        The files.
    """
    summary = flatness_summary(frame)
    roles, runs = summary["role"].unique(), summary["run"].unique()
    palette = colours(runs)
    with figure_style():
        figure, axes = panels(1, len(roles), sharex=True)
        for ax, role in zip(axes[0], roles, strict=True):
            for run in runs:
                own = summary[(summary["role"] == role) & (summary["run"] == run)]
                own = own.sort_values("gamma")
                ax.plot(own["gamma"], own["mean"], "o-", ms=2.5, label=run,
                        color=palette[run])  # fmt: skip
                ax.fill_between(own["gamma"], own["low"], own["high"], lw=0, alpha=0.2,
                                color=palette[run])  # fmt: skip
            count = frame.loc[frame["role"] == role, "N"].iloc[0]
            ax.set_title(f"{TITLES.get(role, role)} (N = {count} clips)")
            ax.set_xlabel(
                "relative radius γ (of each filter's norm)"
                if by_filter
                else "perturbation radius γ"
            )
            ax.set_xlim(left=0)
        axes[0, 0].set_ylabel("loss increase, nats")
        shared_legend(figure, axes.flat)
        caption(
            figure,
            f"Fused cross-entropy, mean over {summary['directions'].iloc[0]} random "
            "directions and their opposites, the same for every run; band: 95 % "
            "interval of that mean.",
        )
        return save_figure(figure, path, frame)
