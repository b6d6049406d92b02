"""Calibration against equations, scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from mmaction_mbcd.analysis.calibration import (
    brier_score,
    calibration_error,
    negative_log_likelihood,
    reliability,
)

# Confidences .9, .8, .6, .6; the second and fourth are wrong.
HAND = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.6, 0.4]])
LABELS = np.array([0, 1, 1, 1])


def predictions(n=400, classes=7, scale=1.5, seed=0):
    """Probabilities (N, C), and labels drawn from them: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(scale * rng.standard_normal((n, classes)), axis=1)
    labels = (probabilities.cumsum(1) < rng.random((n, 1))).sum(1)
    return probabilities, labels.clip(max=classes - 1)


def slow_error(probabilities, labels, edges):
    """sum_b n_b / N |acc_b - conf_b| by loops, bins (low, high]."""
    error = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        rows = [i for i, p in enumerate(probabilities) if low < max(p) <= high]
        right = sum(int(np.argmax(probabilities[i])) == labels[i] for i in rows)
        error += abs(right - sum(max(probabilities[i]) for i in rows))
    return error / len(labels)


def test_values_worked_by_hand():
    # Bins of .25: (.5, .75] has .6, .6 with one right, (.75, 1] .9, .8 with one right.
    error = (2 * abs(0.5 - 0.6) + 2 * abs(0.5 - 0.85)) / 4
    assert calibration_error(HAND, LABELS, bins=4) == pytest.approx(error)
    table = reliability(HAND, LABELS, bins=4)
    assert list(table.high) == [0.25, 0.5, 0.75, 1]
    assert list(table["count"]) == [0, 0, 2, 2]
    assert list(table.confidence[2:]) == pytest.approx([0.6, 0.85])
    assert list(table.accuracy[2:]) == [0.5, 0.5] and table.accuracy[:2].isna().all()
    nll = -(math.log(0.9) + math.log(0.2) + math.log(0.6) + math.log(0.4)) / 4
    assert negative_log_likelihood(HAND, LABELS) == pytest.approx(nll)
    brier = 2 * (0.1**2 + 0.8**2 + 0.4**2 + 0.6**2) / 4
    assert brier_score(HAND, LABELS) == pytest.approx(brier)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_equal_widths_match_torchmetrics_and_a_slow_reference(bins):
    # Imported late: its import needs the torchvision that mmaction_mbcd repairs.
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, labels = predictions()
    ours = calibration_error(probabilities, labels, bins)
    slow = slow_error(probabilities, labels, [b / bins for b in range(bins + 1)])
    assert ours == pytest.approx(slow, abs=1e-12)
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=7, n_bins=bins
    )
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_equal_masses_match_a_slow_reference():
    probabilities, labels = predictions(n=97)
    table = reliability(probabilities, labels, 5, "mass")
    assert table["count"].max() - table["count"].min() <= 1
    # Sorted by confidence and cut in five by numpy: the same parts.
    order = np.argsort(probabilities.max(1))
    right = probabilities.argmax(1) == labels
    gap = right - probabilities.max(1)
    cuts = [97 * k // 5 for k in range(1, 5)]
    parts = np.split(gap[order], cuts)
    error = sum(abs(part.sum()) for part in parts) / 97
    assert calibration_error(probabilities, labels, 5, "mass") == pytest.approx(error)


def test_equal_confidences_share_a_bin_of_equal_mass():
    table = reliability(HAND[[2, 3, 2, 3]], LABELS, 3, "mass")
    assert list(table["count"]) == [4, 0] and table.high[0] == 0.6
    assert reliability(HAND[:2], LABELS[:2], 5, "mass")["count"].sum() == 2


def test_confidences_of_0_and_1_belong_to_the_outer_bins():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    table = reliability(certain, np.array([0, 0]), bins=3)
    assert list(table["count"]) == [0, 0, 2]
    # The sums of float32 rows may exceed 1.
    above = np.array([[1.00001, 0.0]])
    assert reliability(above, np.array([0]), bins=3)["count"][2] == 1


def test_the_error_of_calibrated_predictions_vanishes_with_n():
    few, many = (calibration_error(*predictions(n)) for n in (300, 100_000))
    # The expectation of |acc - conf| per bin is sqrt(2 / pi) standard deviations.
    assert few > 0.02 and many < 0.006
    probabilities, labels = predictions(100_000)
    overconfident = softmax(2 * np.log(probabilities), axis=1)
    assert calibration_error(overconfident, labels) > 0.1


def test_likelihood_and_brier_match_scikit_learn():
    probabilities, labels = predictions()
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(
        log_loss(labels, probabilities)
    )
    assert brier_score(probabilities, labels) == pytest.approx(
        brier_score_loss(labels, probabilities)
    )
    assert brier_score(HAND, LABELS) == pytest.approx(
        2 * brier_score_loss(LABELS, HAND[:, 1])
    )


def test_a_class_without_clips_and_a_wrong_certainty_have_values():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]], dtype=np.float32)
    value = negative_log_likelihood(probabilities, np.array([1, 1]))
    epsilon = np.finfo(float).eps
    assert value == pytest.approx(-(math.log(epsilon) + math.log(0.5)) / 2)


@pytest.mark.parametrize(
    ("probabilities", "labels", "match"),
    [
        (np.ones(3), np.zeros(3), r"\(N, C\)"),
        (HAND, LABELS[:2], r"\(2,\)"),
        (HAND, np.array([0, 1, -1, 0]), "skipped clips"),
        (HAND, np.array([0, 1, 2, 0]), "from 0 to 1"),
        (10 * HAND, LABELS, "logits"),
        (HAND * np.nan, LABELS, "sum to 1"),
        (HAND + [-1, 1], LABELS, "not negative"),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities, labels, match):
    with pytest.raises(ValueError, match=match):
        calibration_error(probabilities, labels)


def test_no_clip_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        brier_score(np.zeros((0, 2)), np.zeros(0))
