"""The loss over a plane of weight space, the paper's Figure 1(c)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from torch import Tensor, nn

from .clips import HeldClips
from .directions import (
    filter_normalised,
    gaussian_direction,
    length,
    moved_along,
    perturbed_parameters,
)
from .figures import COLUMN, caption, figure_style, plt, save_figure
from .flatness import TITLES
from .trained import TrainedModel


@dataclass
class Plane:
    r"""Two directions from an origin: :math:`\theta(x, y) = \theta_0 + x u + y v`.

    Attributes:
        origin: ``{name: values}``, theta_0.
        u: ``{name: entries}``.
        v: ``{name: entries}``.
        xs: Where it is looked at, multiples of ``u``.
        ys: The same of ``v``.
        corners: ``{name: (x, y)}``, points with a name.
    """

    origin: Mapping[str, Tensor]
    u: Mapping[str, Tensor]
    v: Mapping[str, Tensor]
    xs: np.ndarray
    ys: np.ndarray
    corners: dict[str, tuple[float, float]]

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """The weights there; variances of BatchNorm do not fall below zero."""
        if x == y == 0:
            return dict(self.origin)
        weights = moved_along(self.origin, (x, self.u), (y, self.v))
        return {
            name: value.clamp(min=0) if name.endswith("running_var") else value
            for name, value in weights.items()
        }


def random_plane(
    model: nn.Module, radius: float = 1.0, points: int = 15, seed: int = 0
) -> Plane:
    """A plane through the weights along two random filter-normalised directions.

    Li et al. 2018, section 4. In many dimensions two of them are almost orthogonal.
    The same two for every run whose parameters have the same names and shapes, each
    normalised by the run's own filters.

    Args:
        model: Of whose weights.
        radius: Half of a side, in multiples of each filter's own length.
        points: Along a side; an odd number, so that the weights themselves are one.
        seed: Of the directions.

    Raises:
        ValueError: For an even number of points.
    """
    if points % 2 == 0:
        raise ValueError(
            f"points={points} along a side would leave out the trained weights, which "
            "are the middle: choose an odd number"
        )
    origin = {k: v.clone() for k, v in perturbed_parameters(model).items()}
    u, v = (
        filter_normalised(gaussian_direction(origin, seed, i), origin) for i in (0, 1)
    )
    side = np.linspace(-radius, radius, points)
    side[points // 2] = 0
    return Plane(origin, u, v, side, side, {})


def plane_through(
    weights: Mapping[str, Mapping[str, Tensor]], margin: float = 0.3, points: int = 15
) -> Plane:
    r"""The plane through three weight vectors.

    .. math:: u = w_2 - w_1, \qquad
              v = (w_3 - w_1) - \frac{\langle w_3 - w_1, u \rangle}{\|u\|^2} u,

    each divided by its length, so that x and y are distances (Garipov et al. 2018,
    Izmailov et al. 2018; Cha et al. 2021 use it for flatness).

    Args:
        weights: ``{name: {parameter or buffer: values}}``, three of them. BatchNorm's
            statistics are to be among the values: they then move with the weights, and
            each corner is exactly its own model.
        margin: How far the picture reaches beyond the triangle, in its own extent.
        points: Along a side.

    Raises:
        ValueError: If there are not three, if they are of different models, or if they
            lie on a line.
    """
    if len(weights) != 3:
        raise ValueError(
            f"three weight vectors define a plane; got {len(weights)}: {list(weights)}"
        )
    (first, w1), (second, w2), (third, w3) = weights.items()
    shapes = [{k: tuple(x.shape) for k, x in w.items()} for w in (w1, w2, w3)]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise ValueError(
            f"{first}, {second} and {third} are of different models: no plane goes "
            "through weights of different names or shapes"
        )
    u = {k: w2[k] - w1[k] for k in w1}
    a = length(u)
    u = {k: x / a for k, x in u.items()} if a else u
    v = {k: w3[k] - w1[k] for k in w1}
    whole = length(v)
    along = sum(float((u[k].double() * v[k].double()).sum()) for k in u)
    v = {k: v[k] - along * u[k] for k in v}
    b = length(v)
    if not a or b <= 1e-6 * max(whole, a):
        raise ValueError(
            f"{first}, {second} and {third} lie on a line in weight space: choose "
            "three that differ"
        )
    v = {k: x / b for k, x in v.items()}
    corners = {first: (0.0, 0.0), second: (a, 0.0), third: (along, b)}
    spans = []
    for axis in (0, 1):
        values = [corner[axis] for corner in corners.values()]
        reach = margin * (max(values) - min(values))
        spans.append(np.linspace(min(values) - reach, max(values) + reach, points))
    return Plane(dict(w1), u, v, *spans, corners)


def plane_losses(
    trained: TrainedModel,
    losses: Callable[[], Mapping[str, float]],
    plane: Plane,
    advance: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    """The losses at the points of a plane, and at its corners.

    Args:
        trained: Its weights are moved and put back.
        losses: ``{role: loss}`` at the weights that the model has.
        plane: Where.
        advance: Called with 1 after each point.

    Returns:
        Columns role, x, y, loss and corner (its name; empty for a point of the grid).
    """
    places = [(float(x), float(y), "") for y in plane.ys for x in plane.xs]
    places += [(x, y, name) for name, (x, y) in plane.corners.items()]
    rows = []
    for x, y, corner in places:
        with trained.moved(plane.at(x, y)):
            found = losses()
        rows += [
            dict(role=role, x=x, y=y, loss=loss, corner=corner)
            for role, loss in found.items()
        ]
        advance(1)
    return pd.DataFrame(rows)


def measure_landscape(
    trained: TrainedModel,
    clips: Mapping[str, HeldClips],
    plane: Plane,
    advance: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    """:func:`plane_losses` of the fused cross-entropy on clips, with a column N.

    BatchNorm is in eval mode; its statistics stay, unless they are among what the
    plane moves.
    """
    frame = plane_losses(
        trained,
        lambda: {role: held.loss(trained.model) for role, held in clips.items()},
        plane,
        advance,
    )
    frame["N"] = frame["role"].map({role: len(held) for role, held in clips.items()})
    return frame


def moving_weights(model: nn.Module) -> dict[str, Tensor]:
    """What differs between two trainings: trained weights, BatchNorm's statistics."""
    buffers = {
        name: value.detach().clone()
        for name, value in model.named_buffers()
        if value.is_floating_point() and name.rpartition(".")[2].startswith("running_")
    }
    return {k: v.clone() for k, v in perturbed_parameters(model).items()} | buffers


def same_stems(models: Sequence[nn.Module]) -> bool:
    """Whether the frozen stems of all models compute the same."""
    states = [
        {
            f"{stem}.{key}": value
            for stem in (f"encoders.{m}.{name}" for m, encoder in model.encoders.items()
                         for name in encoder.stem_modules())
            for key, value in model.get_submodule(stem).state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        for model in models
    ]  # fmt: skip
    return all(
        state.keys() == states[0].keys()
        and all(torch.equal(state[k], states[0][k]) for k in state)
        for state in states[1:]
    )


def draw_landscape(
    frame: pd.DataFrame,
    path: str | os.PathLike,
    axes_label: str = "filter-normalised direction",
    surface: bool = True,
) -> list[Path]:
    """Contours, and surfaces above them, a column per run with one colour scale.

    The scale is logarithmic and ends at a loss of twice that of guessing or where the
    data do; what lies higher has the last colour.

    Args:
        frame: Of :func:`measure_landscape` for one role, with a column run.
        path: Without suffix.
        axes_label: What the axes are.
        surface: Whether surfaces are drawn.

    Returns:
        The files.
    """
    runs = list(frame["run"].unique())
    grids = {run: _grid(frame[(frame["run"] == run) & (frame["corner"] == "")])
             for run in runs}  # fmt: skip
    low = min(z.min() for _, _, z in grids.values())
    high = min(max(z.max() for _, _, z in grids.values()), 50 * max(low, 0.02))
    low, high = max(low, 1e-4), max(high, 1.2 * max(low, 1e-4))
    norm, levels = LogNorm(low, high), np.geomspace(low, high, 16)
    with figure_style(), plt.rc_context({"axes.grid": False}):
        rows = 1 + surface
        figure = plt.figure(
            figsize=(max(COLUMN * len(runs) + 0.7, 3.6), 2.5 * rows + 0.3),
            layout="constrained",
        )
        flat = []
        for i, run in enumerate(runs):
            x, y, z = grids[run]
            shown = z.clip(low, high)
            if surface:
                ax = figure.add_subplot(rows, len(runs), i + 1, projection="3d")
                ax.plot_surface(x, y, np.log10(shown), cmap="cividis",
                                facecolors=plt.get_cmap("cividis")(norm(shown)),
                                rstride=1, cstride=1, lw=0, antialiased=True,
                                shade=False)  # fmt: skip
                _dress_surface(ax, low, high)
                ax.set_title(run)
            first = flat[0] if flat else None
            ax = figure.add_subplot(
                rows, len(runs), (rows - 1) * len(runs) + i + 1, sharex=first,
                sharey=first,
            )  # fmt: skip
            filled = ax.contourf(x, y, shown, levels=levels, norm=norm, cmap="cividis")
            ax.contour(x, y, shown, levels=levels[::2], colors="w", linewidths=0.4)
            _mark(ax, frame[(frame["run"] == run) & (frame["corner"] != "")])
            if not surface:
                ax.set_title(run)
            ax.set_xlabel(f"{axes_label} 1")
            ax.set_ylabel(f"{axes_label} 2" if i == 0 else "")
            ax.set_box_aspect(1)
            flat.append(ax)
        ticks = np.geomspace(low, high, 6)
        bar = figure.colorbar(filled, ax=flat, ticks=ticks, shrink=0.9, pad=0.02)
        bar.ax.set_yticks(ticks, [f"{t:.2g}" for t in ticks])
        bar.ax.minorticks_off()
        bar.set_label("cross-entropy, nats")
        role, count = frame["role"].iloc[0], frame["N"].iloc[0]
        over = (frame["loss"] > high).any()
        caption(
            figure,
            f"Fused cross-entropy on {TITLES.get(role, role)} clips, N = {count}; "
            "logarithmic colours, shared"
            + (f"; losses above {high:.2g} are drawn as {high:.2g}." if over else "."),
        )
        return save_figure(figure, path, frame)


def _grid(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates and losses, ``(len(ys), len(xs))`` each."""
    table = frame.pivot(index="y", columns="x", values="loss")
    x, y = np.meshgrid(table.columns.to_numpy(), table.index.to_numpy())
    return x, y, table.to_numpy()


def _dress_surface(ax: plt.Axes, low: float, high: float) -> None:
    ax.set_zlim(np.log10(low), np.log10(high))
    ticks = np.geomspace(low, high, 4)
    ax.set_zticks(np.log10(ticks), [f"{t:.2g}" for t in ticks])
    ax.tick_params(pad=-3, labelsize=5)
    ax.tick_params(axis="z", pad=-1)
    ax.set_box_aspect((1, 1, 0.7), zoom=0.95)
    ax.view_init(30, -55)


def _mark(ax: plt.Axes, corners: pd.DataFrame) -> None:
    if corners.empty:
        ax.plot(0, 0, "+", color="w", ms=6)
    for corner in corners.itertuples():
        ax.plot(corner.x, corner.y, "o", color="w", mec="k", ms=4)
        ax.annotate(
            f"{corner.corner}\n{corner.loss:.2f}", (corner.x, corner.y),
            xytext=(0, 5), textcoords="offset points", ha="center", fontsize=6,
            color="w",
        )  # fmt: skip
