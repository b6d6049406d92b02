"""Calibration: whether predicted probabilities are the shares that come true.

All functions take probabilities (N, C) that sum to 1 by row, and labels (N,) below C.
The values do not depend on the order of the rows.
"""

from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss

Bins = Literal["width", "mass"]


def reliability(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    binning: Bins = "width",
) -> pd.DataFrame:
    """The data of a reliability diagram, by the confidence of the predicted class.

    Args:
        probabilities: (N, C); the predicted class is the first of the largest, its
            probability the confidence.
        labels: (N,).
        bins: How many.
        binning: ``width``: of equal width over [0, 1], as Guo et al. (ICML 2017),
            eq. 2. ``mass``: of equally many clips, up to one, as Nguyen & O'Connor
            (EMNLP 2015); equal confidences stay together, so that bins may be fewer.

    Returns:
        A row per bin, empty ones too: low and high (a confidence c belongs where low <
        c <= high, 0 to the first), confidence and accuracy (means of the bin; NaN if it
        is empty) and count.

    Raises:
        ValueError: If the probabilities are not (N, C), do not sum to 1, or the labels
            do not fit them.
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    edges = _edges(confidence, bins, binning)
    # Bins are closed on the right: (low, high].
    index = np.clip(np.searchsorted(edges, confidence) - 1, 0, len(edges) - 2)
    count = np.bincount(index, minlength=len(edges) - 1)
    filled = np.where(count, count, np.nan)
    return pd.DataFrame(
        dict(
            low=edges[:-1],
            high=edges[1:],
            confidence=np.bincount(index, confidence, len(count)) / filled,
            accuracy=np.bincount(index, right, len(count)) / filled,
            count=count,
        )
    )


def calibration_error(
    probabilities: np.ndarray,
    labels: np.ndarray,
    bins: int = 15,
    binning: Bins = "width",
) -> float:
    """Expected calibration error of the predicted class, ECE, in [0, 1].

    ``ECE = sum_b (n_b / N) |acc_b - conf_b|`` (Guo et al., ICML 2017, eq. 3) over the
    bins b of :func:`reliability`; ``binning="mass"`` gives the adaptive one. It is
    biased: a perfectly calibrated model has an ECE of the order of sqrt(bins / N), not
    0. N and the bins belong beside it.
    """
    table = reliability(probabilities, labels, bins, binning)
    gap = (table.accuracy - table.confidence).abs()
    return float((gap * table["count"]).sum() / table["count"].sum())


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """NLL, the mean of -ln p(label), in nats.

    Probabilities are clipped at float64's epsilon (2.2e-16): one wrong certainty costs
    36, not infinity.
    """
    probabilities, labels = _checked(probabilities, labels)
    return float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier's score of several classes, in [0, 2]: mean_i sum_c (p_ic - [y_i = c])^2.

    The definition of Brier (1950). Half of it is the two-class score in [0, 1] that
    scikit-learn gives for C = 2 by default.
    """
    probabilities, labels = _checked(probabilities, labels)
    right = np.arange(probabilities.shape[1]) == labels[:, None]
    return float(((probabilities - right) ** 2).sum(1).mean())


def _edges(confidence: np.ndarray, bins: int, binning: Bins) -> np.ndarray:
    if binning == "width":
        return np.linspace(0, 1, bins + 1)
    ranked = np.sort(confidence)
    # The last confidence of each of the equal parts closes its bin.
    last = np.arange(1, bins) * len(ranked) // bins - 1
    return np.unique(np.concatenate([[0], ranked[last[last >= 0]], [1]]))


def _checked(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.asarray(probabilities, dtype=float)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "need probabilities (N, C) and labels (N,), not "
            f"{probabilities.shape} and {labels.shape}"
        )
    if (
        not len(labels)
        or not 0 <= labels.min() <= labels.max() < probabilities.shape[1]
    ):
        raise ValueError(
            f"need labels from 0 to {probabilities.shape[1] - 1} of at least one clip, "
            f"got {np.unique(labels).tolist()}: leave skipped clips (-1) out"
        )
    sums = probabilities.sum(1)
    if not (np.abs(sums - 1) < 1e-4).all() or (probabilities < 0).any():
        raise ValueError(
            "probabilities are not negative and sum to 1 by row; these have sums from "
            f"{sums.min():.4g} to {sums.max():.4g}: logits, or clips without any?"
        )
    # float32's softmax is 1e-7 off, which scikit-learn warns of.
    return probabilities / sums[:, None], labels
