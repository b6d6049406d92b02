"""What each modality contributes to the fused accuracy: Shapley values."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from .clips import HeldClips
from .figures import caption, colours, figure_style, panels, save_figure, shared_legend
from .flatness import TITLES
from .statistics import accuracy_interval
from .trained import TrainedModel


def coalitions(players: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets in declared order, the empty one first, ``2^M`` of them."""
    return [
        subset
        for size in range(len(players) + 1)
        for subset in itertools.combinations(players, size)
    ]


def shapley_values(
    values: Mapping[tuple[str, ...], np.ndarray | float], players: Sequence[str]
) -> dict[str, np.ndarray | float]:
    r"""Exact Shapley values of a cooperative game (Shapley 1953).

    .. math:: \phi_k = \sum_{S \subseteq P \setminus k}
              \frac{|S|! \, (M - |S| - 1)!}{M!} (v(S \cup k) - v(S))

    They are the only shares that sum to :math:`v(P) - v(\emptyset)`, are equal for
    players that are interchangeable, zero for one that never matters, and add up when
    games do.

    Args:
        values: v of every subset, keyed as :func:`coalitions` returns it. Scalars, or
            arrays of one shape, such as one value per clip.
        players: The M players, here modalities.

    Returns:
        ``{player: value}``, of the shape of the given ones.

    Raises:
        ValueError: If a subset has no value.
    """
    if missing := [s for s in coalitions(players) if s not in values]:
        raise ValueError(f"no value for {len(missing)} subsets, such as {missing[0]}")
    count, shares = len(players), {}
    for player in players:
        others = [p for p in players if p != player]
        share = 0.0
        for subset in coalitions(others):
            size = len(subset)
            weight = math.factorial(size) * math.factorial(count - size - 1)
            joined = tuple(p for p in players if p in subset or p == player)
            gain = values[joined] - values[subset]
            share = share + weight / math.factorial(count) * gain
        shares[player] = share
    return shares


def coalition_accuracies(
    trained: TrainedModel,
    clips: HeldClips,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[tuple[str, ...], np.ndarray]:
    """Whether each clip is classified rightly from each subset of its modalities.

    The other modalities are masked (``present=False``), the clips the same. A clip
    that lacks every modality of a subset, as all do for the empty one, counts as
    guessed: 1 / C.

    Args:
        trained: The model; C is its number of classes.
        clips: N of them.
        advance: Called with 1 after each subset.

    Returns:
        ``{subset: (N,)}``, 0 or 1, or 1 / C.
    """
    guessed = 1 / trained.model.num_classes
    values = {(): np.full(len(clips), guessed)}
    for subset in coalitions(trained.modalities)[1:]:
        parts = []
        for outputs, batch in clips.outputs(trained.model, kept=subset):
            right = (outputs.fused_logits.argmax(1) == batch.labels).double()
            some = sum(batch.present[m] for m in subset) > 0
            parts.append(right.where(some, right.new_tensor(guessed)).cpu().numpy())
        values[subset] = np.concatenate(parts)
        advance(1)
    return values


def measure_shapley(
    trained: TrainedModel,
    clips: HeldClips,
    resamples: int = 2000,
    seed: int = 0,
    advance: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    """Shapley values of the modalities, and the accuracies that they come from.

    The value of a set of modalities is the fused accuracy with the others masked; of
    the empty set 1 / C, that of a constant guess where classes are equally frequent.
    The values therefore sum to the full accuracy minus 1 / C.

    Args:
        trained: The model.
        clips: N of them.
        resamples: Of the percentile bootstrap over clips.
        seed: Of it.
        advance: Called with 1 after each subset.

    Returns:
        Columns role, quantity (``'shapley'`` or ``'accuracy'``), modalities (joined by
        ``+``; empty for none), value, low and high (95 %), N. Fractions.
    """
    correct = coalition_accuracies(trained, clips, advance)
    # Linear in v: the value of the mean is the mean over clips of their own values.
    shares = shapley_values(correct, trained.modalities)
    known = dict(role=clips.role, N=len(clips))
    rows = [
        known | dict(quantity="shapley", modalities=m, value=own.mean())
        | dict(zip(("low", "high"), _interval(own, resamples, seed), strict=True))
        for m, own in shares.items()
    ]  # fmt: skip
    for subset, own in correct.items():
        low, high = _interval(own, resamples, seed)
        if set(np.unique(own)) <= {0, 1}:
            low, high = accuracy_interval(own.mean(), len(own))
        rows.append(
            known | dict(quantity="accuracy", modalities="+".join(subset),
                         value=own.mean(), low=low, high=high)
        )  # fmt: skip
    names = ["role", "quantity", "modalities", "value", "low", "high", "N"]
    return pd.DataFrame(rows)[names]


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of a mean over clips."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile",
        vectorized=True, rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def draw_shapley(frame: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """A panel per role, a group of bars per modality, a bar per run.

    Args:
        frame: Of :func:`measure_shapley`, with a column run.
        path: Without suffix.

    Returns:
        The files.
    """
    shares = frame[frame["quantity"] == "shapley"]
    roles, runs = shares["role"].unique(), shares["run"].unique()
    groups, palette = list(shares["modalities"].unique()), colours(runs)
    with figure_style():
        figure, axes = panels(1, len(roles), sharey=True)
        for ax, role in zip(axes[0], roles, strict=True):
            own = shares[shares["role"] == role]
            grouped_bars(ax, own, "modalities", groups, palette)
            ax.axhline(0, color="k", lw=0.6)
            ax.set_title(f"{TITLES.get(role, role)} (N = {own['N'].iloc[0]} clips)")
        axes[0, 0].set_ylabel("Shapley value, accuracy points")
        shared_legend(figure, axes.flat)
        # Many runs would fill the page; their accuracies are in the data.
        full = _full_accuracies(frame) if len(runs) * len(roles) <= 6 else []
        caption(
            figure,
            "The values of a run sum to its fused accuracy minus 1/C"
            + (f" ({'; '.join(full)})" if full else "")
            + ". 95 % bootstrap interval over clips.",
        )
        return save_figure(figure, path, frame)


def grouped_bars(
    ax, frame: pd.DataFrame, column: str, groups: Sequence[str], palette: Mapping
) -> None:
    """Bars of percent with their intervals: a group per value of a column.

    Args:
        ax: Where.
        frame: Columns run, value, low, high (fractions) and ``column``.
        column: What groups.
        groups: Its values, in order.
        palette: ``{run: colour}``; the order of the bars in a group.
    """
    width = 0.8 / len(palette)
    for i, (run, colour) in enumerate(palette.items()):
        own = frame[frame["run"] == run].set_index(column)
        own = own.loc[[g for g in groups if g in own.index]]
        at = [groups.index(g) + (i - (len(palette) - 1) / 2) * width for g in own.index]
        value = 100 * own["value"].to_numpy()
        errors = [value - 100 * own["low"], 100 * own["high"] - value]
        ax.bar(at, value, 0.92 * width, label=run, color=colour)
        ax.errorbar(at, value, np.clip(errors, 0, None), fmt="none", ecolor="0.2",
                    elinewidth=0.8, capsize=min(2.0, 12 * width))  # fmt: skip
    ax.set_xticks(range(len(groups)), groups)
    ax.grid(axis="x", visible=False)


def _full_accuracies(frame: pd.DataFrame) -> list[str]:
    """``'MBCD: 70.0 - 16.7'`` per run and role."""
    accuracies = frame[frame["quantity"] == "accuracy"]
    found = []
    for (run, role), own in accuracies.groupby(["run", "role"], sort=False):
        size = own["modalities"].str.count(r"\+") + (own["modalities"] != "")
        full, none = own.loc[size.idxmax(), "value"], own.loc[size.idxmin(), "value"]
        found.append(f"{run}, {role}: {100 * full:.1f} - {100 * none:.1f}")
    return found
