"""Whether the probabilities of every head are the shares that come true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from ...evaluation.predictions import Predictions
from ..calibration import (
    brier_score,
    calibration_error,
    negative_log_likelihood,
    reliability,
)
from ..figures import OKABE_ITO, figure_style, panels, save_figure, shared_legend
from .base import Suite, Table, percent, skipped_note, title_of
from .readings import CLEAN

BINS = 15
"""As Guo et al. (ICML 2017)."""


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of a mean over clips; NaN with fewer than two.

    Args:
        values: ``(N,)``.
    """
    if len(values) < 2:
        return np.nan, np.nan
    low, high = stats.t.interval(
        0.95, len(values) - 1, values.mean(), stats.sem(values)
    )
    return float(low), float(high)


def measure_calibration(predictions: Predictions, bins: int = BINS) -> pd.DataFrame:
    """Calibration of every head, on the clips of which it says something.

    Returns:
        Columns head, N, accuracy and confidence (means), ece (bins of equal width),
        ece_mass (of equally many clips), nll (nats), nll_low, nll_high, brier (0 to 2),
        brier_low, brier_high: both are means over clips, with :func:`mean_interval`.
    """
    rows = []
    for head in predictions.logits:
        p, y = _known(predictions, head)
        one_hot = np.eye(p.shape[1])[y]
        nll = mean_interval(-np.log((p * one_hot).sum(1).clip(np.finfo(float).eps)))
        brier = mean_interval(((p - one_hot) ** 2).sum(1))
        rows.append(
            dict(
                head=title_of(head),
                N=len(y),
                accuracy=float(np.mean(p.argmax(1) == y)),
                confidence=float(p.max(1).mean()),
                ece=calibration_error(p, y, bins),
                ece_mass=calibration_error(p, y, bins, "mass"),
                nll=negative_log_likelihood(p, y),
                nll_low=nll[0],
                nll_high=nll[1],
                brier=brier_score(p, y),
                brier_low=brier[0],
                brier_high=brier[1],
            )
        )
    return pd.DataFrame(rows)


def measure_reliability(predictions: Predictions, bins: int = BINS) -> pd.DataFrame:
    """The data of the reliability diagrams.

    Returns:
        Columns head, low, high, confidence, accuracy, count, one row for each bin of
        equal width, see :func:`.calibration.reliability`.
    """
    tables = [
        reliability(*_known(predictions, head), bins).assign(head=title_of(head))
        for head in predictions.logits
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["head", *table.columns.drop("head")]]


def _known(predictions: Predictions, head: str) -> tuple[np.ndarray, np.ndarray]:
    known = predictions.known(head)
    return predictions.probabilities(head)[known], predictions.labels[known]


def draw_reliability(data: pd.DataFrame, path: Path) -> None:
    """Accuracy over confidence for every head, and how many clips stand behind it.

    Args:
        data: Of :func:`measure_reliability`.
        path: Without suffix.
    """
    heads = list(data["head"].unique())
    with figure_style():
        figure, axes = panels(
            2, len(heads), 1.6, 2.2, sharex=True, sharey="row", height_ratios=(3, 1)
        )
        for column, head in enumerate(heads):
            own = data[data["head"] == head]
            _draw_head(*axes[:, column], own)
            axes[0, column].set_title(f"{head} (N = {own['count'].sum()})")
        axes[0, 0].set_ylabel("accuracy, %")
        axes[1, 0].set_ylabel("clips, %")
        shared_legend(figure, axes.flat)
        save_figure(figure, path, data)


def _draw_head(above: Axes, below: Axes, own: pd.DataFrame) -> None:
    filled = own[own["count"] > 0]
    left, width = 100 * filled["low"], 100 * (filled["high"] - filled["low"])
    right, sure = 100 * filled["accuracy"], 100 * filled["confidence"]
    bars = dict(align="edge", edgecolor="white", lw=0.5)
    above.bar(left, right, width, color=OKABE_ITO[0], label="accuracy", **bars)
    # Hatched, not filled: where confidence is too low it lies on the bar.
    above.bar(left, sure - right, width, right, align="edge", facecolor="none",
              edgecolor=OKABE_ITO[3], hatch="////", lw=0.5,
              label="gap to the mean confidence")  # fmt: skip
    above.plot([0, 100], [0, 100], "--", color="0.4", lw=0.8, label="calibrated")
    above.set_xlim(0, 100)
    above.set_ylim(0, 100)
    share = 100 * filled["count"] / filled["count"].sum()
    below.bar(left, share, width, color="0.6", **bars)
    below.set_xlabel("confidence, %")


@dataclass
class Calibration(Suite):
    """ECE, NLL, Brier score and reliability diagrams of the fused and unimodal heads.

    Args:
        bins: Of the ECE and the diagrams.
    """

    bins: int = BINS

    name = "calibration"

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """One row for each head."""
        clean = predictions[CLEAN]
        data = measure_calibration(clean, self.bins)
        draw_reliability(measure_reliability(clean, self.bins), folder / "reliability")
        shown = pd.DataFrame(
            {
                "head": data["head"],
                "N": data["N"],
                "top-1 %": data["accuracy"].map(percent),
                "confidence %": data["confidence"].map(percent),
                "ECE %": data["ece"].map(percent),
                "ECE, equal mass": data["ece_mass"]
                .map("{:.1%}".format)
                .str.rstrip("%"),
                "NLL": [_number(row, "nll") for _, row in data.iterrows()],
                "Brier": [_number(row, "brier") for _, row in data.iterrows()],
            }
        )
        # |accuracy - confidence| of a bin of n clips: 0.8 standard deviations of a
        # share, at most 0.4 / sqrt(n), on average.
        bias = 0.4 * np.sqrt(self.bins / data["N"].iloc[0])
        notes = [
            f"{self.bins} bins: a calibrated model's ECE would not be 0, but up to 0.4 "
            f"sqrt(bins / N) = {100 * bias:.0f} %.",
            "NLL in nats; Brier from 0 to 2. Intervals: for the choice of clips.",
            *skipped_note(clean),
        ]
        title = "Calibration [95 % interval]"
        return [Table("calibration", title, data, shown, notes)]


def _number(row: Mapping, name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
