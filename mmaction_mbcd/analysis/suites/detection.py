"""Whether a head knows when it is wrong: detection of misclassification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from ...evaluation.predictions import Predictions
from ..detection import SCORES, misclassification
from ..figures import colours, figure_style, panels, save_figure, shared_legend
from .base import Suite, Table, percent, skipped_note, title_of
from .readings import CLEAN

NAMES = dict(msp="max. probability", energy="energy", entropy="entropy")
"""Titles of :data:`.detection.SCORES`."""


def auroc_interval(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """95 % interval of the AUROC over the choice of clips.

    The variance of DeLong et al. 1988 (Biometrics 44): with V_i the share of negatives
    that positive i outscores (ties a half), and W_j that of positives that outscore
    negative j, it is var(V) / m + var(W) / n.

    Args:
        scores: ``(m + n,)``, high for positives.
        positive: ``(m + n,)`` bool.

    Returns:
        Fractions; NaN with fewer than two of either kind.
    """
    inside, outside = scores[positive], scores[~positive]
    m, n = len(inside), len(outside)
    if min(m, n) < 2:
        return np.nan, np.nan
    ranks = rankdata(np.concatenate([inside, outside]))
    v = (ranks[:m] - rankdata(inside)) / n
    w = 1 - (ranks[m:] - rankdata(outside)) / m
    half = norm.ppf(0.975) * np.sqrt(np.var(v, ddof=1) / m + np.var(w, ddof=1) / n)
    return max(0.0, float(v.mean() - half)), min(1.0, float(v.mean() + half))


def measure_detection(predictions: Predictions) -> pd.DataFrame:
    """How well each score tells a head's right predictions from its wrong ones.

    Returns:
        Columns head, score, N, wrong (how many), aurc, e_aurc, auroc, fpr95, auroc_low
        and auroc_high (:func:`auroc_interval`). Fractions; NaN where no prediction, or
        every one, is wrong.
    """
    rows = []
    for head in predictions.logits:
        known = predictions.known(head)
        logits, correct = (
            predictions.logits[head][known],
            predictions.correct(head)[known],
        )
        for name, score in SCORES.items():
            scores = score(logits)
            low, high = auroc_interval(scores, correct)
            rows.append(
                dict(head=title_of(head), score=name)
                | dict(N=len(correct), wrong=int(np.sum(~correct)))
                | misclassification(scores, correct)
                | dict(auroc_low=low, auroc_high=high)
            )
    return pd.DataFrame(rows)


def measure_risk(predictions: Predictions) -> pd.DataFrame:
    """Risk over coverage of the fused head.

    Returns:
        Columns score, coverage (share of the clips that are answered, the most trusted
        ones first), risk (share of wrong predictions among them). Fractions.
    """
    known = predictions.known()
    logits, correct = predictions.logits[""][known], predictions.correct()[known]
    count = np.arange(1, len(correct) + 1)
    tables = []
    for name, score in SCORES.items():
        order = np.argsort(-score(logits), kind="stable")
        risk = np.cumsum(~correct[order]) / count
        table = pd.DataFrame(dict(coverage=count / len(correct), risk=risk))
        tables.append(table.assign(score=name))
    return pd.concat(tables, ignore_index=True)[["score", "coverage", "risk"]]


def draw_risk(data: pd.DataFrame, path: Path) -> None:
    """Risk over coverage, a line for each score.

    Args:
        data: Of :func:`measure_risk`.
        path: Without suffix.
    """
    palette = colours(list(SCORES))
    with figure_style():
        figure, axes = panels(1, 1, 2.6, 3.6)
        ax = axes[0, 0]
        for name, rows in data.groupby("score", sort=False):
            ax.plot(100 * rows["coverage"], 100 * rows["risk"], lw=1.2,
                    color=palette[name], label=NAMES[name])  # fmt: skip
        risk = 100 * data["risk"].iloc[-1]
        ax.axhline(risk, ls="--", lw=0.8, color="0.4", label="without a choice")
        ax.set_xlim(0, 100)
        ax.set_ylim(bottom=0)
        count = len(data) // data["score"].nunique()
        ax.set_xlabel(f"coverage: clips that are answered, % (N = {count})")
        ax.set_ylabel("risk: wrong fused answers, %")
        shared_legend(figure, [ax])
        save_figure(figure, path, data)


class Detection(Suite):
    """AURC, E-AURC, AUROC and FPR95 by maximum probability, energy and entropy."""

    name = "detection"

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """One row for each head and score."""
        clean = predictions[CLEAN]
        data = measure_detection(clean)
        draw_risk(measure_risk(clean), folder / "risk_coverage")
        shown = pd.DataFrame(
            {
                "head": data["head"],
                "score": data["score"].map(NAMES),
                "N": data["N"],
                "wrong": data["wrong"],
                "AURC x1000": data["aurc"].map(_thousandths),
                "E-AURC x1000": data["e_aurc"].map(_thousandths),
                "AUROC %": [percent_auroc(row) for _, row in data.iterrows()],
                "FPR95 %": data["fpr95"].map(percent),
            }
        )
        notes = [
            "Positive: right predictions. FPR95: wrong ones accepted where 95 % of the "
            "right ones are. AURC and FPR95 should be small, AUROC large.",
            *skipped_note(clean),
        ]
        title = "Detection of misclassification [95 % interval]"
        return [Table("detection", title, data, shown, notes)]


def percent_auroc(row: Mapping) -> str:
    """``'81.2 [75.0, 87.1]'``; ``'-'`` where it is not defined."""
    if np.isnan(row["auroc"]):
        return "-"
    low, high = percent(row["auroc_low"]), percent(row["auroc_high"])
    return f"{percent(row['auroc'])} [{low}, {high}]"


def _thousandths(value: float) -> str:
    return f"{1000 * value:.1f}"
