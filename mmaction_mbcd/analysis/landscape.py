"""The loss over a plane of weight space, the paper's Figure 1(c)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from .clips import HeldClips
from .directions import (
    filter_normalised,
    gaussian_direction,
    length,
    moved_along,
    perturbed_parameters,
)
from .figures import caption, figure_style, plt, save_figure
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
    """:func:`plane_losses` of the fused cross-entropy on clips.

    With columns N and guess, the loss ln C of equal probabilities.

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
    frame["guess"] = np.log(trained.model.num_classes)
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

    The scale is linear and ends at twice the loss of guessing, 2 ln C: what lies higher
    says no more. It has the last colour; the data keep it.

    Args:
        frame: Of :func:`measure_landscape` for one role, with a column run.
        path: Without suffix.
        axes_label: What the axes are.
        surface: Whether surfaces are drawn.

    Returns:
        The files.
    """
    scale = _Scale.of(frame)
    runs = list(frame["run"].unique())
    role, count = frame["role"].iloc[0], frame["N"].iloc[0]
    with figure_style(), plt.rc_context({"axes.grid": False}):
        rows = 1 + surface
        figure = plt.figure(
            figsize=(max(2.3 * len(runs) + 0.8, 3.6), 2.3 * rows + 0.4),
            layout="constrained",
        )
        flat = []
        for i, run in enumerate(runs, start=1):
            own = frame[frame["run"] == run]
            grid = _grid(own[own["corner"] == ""])
            place = (rows, len(runs), i + len(runs) * surface)
            flat.append(figure.add_subplot(*place, **_shared(flat)))
            filled = _draw_contours(flat[-1], *grid, scale)
            _mark(flat[-1], own[own["corner"] != ""])
            flat[-1].set_xlabel(f"{axes_label} 1")
            top = flat[-1]
            if surface:
                top = figure.add_subplot(rows, len(runs), i, projection="3d")
                _draw_surface(top, *grid, scale)
            top.set_title(run)
        flat[0].set_ylabel(f"{axes_label} 2")
        bar = figure.colorbar(
            filled, ax=flat, shrink=0.9, pad=0.02, ticks=MaxNLocator(6, prune="upper")
        )
        bar.set_label("cross-entropy, nats")
        over = f" Losses above {scale.high:.2f} share the last colour."
        caption(
            figure,
            f"Fused cross-entropy on {TITLES.get(role, role)} clips, N = {count}; one "
            f"colour scale. A guess has {frame['guess'].iloc[0]:.2f} nats."
            + (over if scale.cut else ""),
        )
        return save_figure(figure, path, frame)


@dataclass
class _Scale:
    """From which to which loss colours and heights go; whether some lie above."""

    low: float
    high: float
    cut: bool

    @classmethod
    def of(cls, frame: pd.DataFrame) -> _Scale:
        low, high = frame["loss"].min(), frame["loss"].max()
        limit = max(2 * frame["guess"].iloc[0], 1.5 * low)
        # A plane without any slope still needs a scale.
        return cls(low, max(min(high, limit), low + 1e-3), high > limit)


def _shared(flat: list) -> dict:
    return dict(sharex=flat[0], sharey=flat[0]) if flat else {}


def _grid(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates and losses, ``(len(ys), len(xs))`` each."""
    table = frame.pivot(index="y", columns="x", values="loss")
    x, y = np.meshgrid(table.columns.to_numpy(), table.index.to_numpy())
    return x, y, table.to_numpy()


def _draw_contours(ax, x: np.ndarray, y: np.ndarray, z: np.ndarray, scale: _Scale):
    levels = np.linspace(scale.low, scale.high, 16)
    extend = "max" if scale.cut else "neither"
    filled = ax.contourf(x, y, z, levels=levels, cmap="viridis", extend=extend)
    ax.contour(x, y, z, levels=levels[1::2], colors="w", linewidths=0.4)
    ax.set_box_aspect(1)
    return filled


def _draw_surface(ax, x: np.ndarray, y: np.ndarray, z: np.ndarray, scale: _Scale):
    ax.plot_surface(
        x, y, z.clip(max=scale.high), cmap="viridis", vmin=scale.low, vmax=scale.high,
        rstride=1, cstride=1, lw=0.15, edgecolor="0.3",
    )  # fmt: skip
    ax.set_zlim(scale.low, scale.high)
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        ticks = np.linspace(values.min(), values.max(), 3)
        axis.set_ticks(ticks, [f"{tick:.2g}" for tick in ticks])
    ax.zaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(pad=-3, labelsize=6)
    ax.tick_params(axis="z", pad=-1)
    ax.set_box_aspect((1, 1, 0.75), zoom=1.1)
    ax.view_init(28, -55)


def _mark(ax, corners: pd.DataFrame) -> None:
    """A cross at the trained weights, or the corners by name and loss."""
    if corners.empty:
        ax.plot(0, 0, "+", color="w", ms=6)
    for corner in corners.itertuples():
        ax.plot(corner.x, corner.y, "o", color="w", mec="k", ms=4)
        ax.annotate(
            f"{corner.corner}\n{corner.loss:.2f}", (corner.x, corner.y),
            xytext=(0, 5), textcoords="offset points", ha="center", fontsize=6,
            color="w", path_effects=[withStroke(linewidth=1, foreground="k")],
        )  # fmt: skip
