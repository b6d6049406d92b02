"""Detection measures against hand-worked values, loops and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score

from mmaction_mbcd.analysis.detection import (
    SCORES,
    aurc,
    auroc,
    energy,
    excess_aurc,
    fpr_at_tpr,
    maximum_probability,
    misclassification,
    negative_entropy,
    out_of_distribution,
)

SCORED = np.array([0.9, 0.8, 0.7, 0.6])
RIGHT = np.array([True, False, True, True])


def clips(seed=0, n=200, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return (scores.round(1) if ties else scores), rng.random(n) < 0.3 + 0.6 * scores


def test_scores_worked_by_hand():
    logits = np.array([[math.log(3), 0.0], [0.0, 0.0]])  # softmax 3/4, 1/4; 1/2, 1/2
    assert maximum_probability(logits) == pytest.approx([0.75, 0.5])
    assert energy(logits) == pytest.approx([math.log(4), math.log(2)])
    entropy = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert negative_entropy(logits) == pytest.approx([entropy, -math.log(2)])
    # A shift of the logits changes the energy alone; a certain one has no entropy.
    assert maximum_probability(logits + 5) == pytest.approx([0.75, 0.5])
    assert energy(logits + 5) == pytest.approx([5 + math.log(4), 5 + math.log(2)])
    assert negative_entropy(np.array([[1e4, 0.0]])) == pytest.approx(0)


def test_aurc_worked_by_hand():
    # Wrong among the first 1..4: 0, 1, 1, 1.
    expected = (0 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert aurc(SCORED, RIGHT) == pytest.approx(expected)
    excess = expected - (1 / 4 + 3 / 4 * math.log(3 / 4))
    assert excess_aurc(SCORED, RIGHT) == pytest.approx(excess)


def test_aurc_of_ties_is_that_of_a_random_order():
    scores, right = clips(ties=True)
    rng = np.random.default_rng(1)
    values = [
        aurc(scores + 1e-6 * rng.standard_normal(len(scores)), right)
        for _ in range(2000)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert aurc(scores, right) == pytest.approx(np.mean(values), abs=4 * error)


def published_misclassification(scores, right):
    """As the evaluation scripts of the field have it, by loops."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    risks, wrong = [], 0
    for k, i in enumerate(order, 1):
        wrong += not right[i]
        risks.append(wrong / k)
    area, r = sum(risks) / len(risks), risks[-1]
    points = []
    for threshold in sorted(set(scores), reverse=True):
        accepted = [i for i in order if scores[i] >= threshold]
        true = sum(right[i] for i in accepted) / sum(right)
        false = sum(not right[i] for i in accepted) / sum(~right)
        points.append((abs(true - 0.95), false, true))
    first = next(false for _, false, true in points if true >= 0.95)
    return area, area - (r + (1 - r) * math.log(1 - r)), first, min(points)[1]


@pytest.mark.parametrize("seed", range(4))
def test_misclassification_matches_loops(seed):
    scores, right = clips(seed, n=137)
    area, excess, first, nearest = published_misclassification(scores, right)
    ours = misclassification(scores, right)
    assert ours["aurc"] == pytest.approx(area, abs=1e-12)
    assert ours["e_aurc"] == pytest.approx(excess, abs=1e-12)
    assert ours["fpr95"] == pytest.approx(first, abs=1e-12)
    published = misclassification(scores, right, threshold="nearest")
    assert published["fpr95"] == pytest.approx(nearest, abs=1e-12)
    # The area under the ROC curve is Mann and Whitney's U, as a share.
    u = mannwhitneyu(scores[right], scores[~right]).statistic
    assert ours["auroc"] == pytest.approx(u / right.sum() / (~right).sum())


def test_the_two_thresholds_worked_by_hand():
    # 10 positives with a negative before the last: 9 of 10 is .05 from .95, and so
    # is 10 of 10; the standard needs the tenth.
    scores = -np.arange(11.0)
    positive = np.arange(11) != 9
    assert fpr_at_tpr(scores, positive) == 1
    assert fpr_at_tpr(scores, positive, threshold="nearest") == 0
    # 19 of 20 are exactly .95.
    positive = np.arange(21) != 19
    assert fpr_at_tpr(-np.arange(21.0), positive) == 0


def test_without_a_wrong_or_a_right_clip_only_the_area_is_defined():
    perfect = misclassification(SCORED, np.ones(4, bool))
    assert perfect["aurc"] == 0 and perfect["e_aurc"] == 0
    assert math.isnan(perfect["auroc"]) and math.isnan(perfect["fpr95"])
    wrong = misclassification(SCORED, np.zeros(4, bool))
    assert wrong["aurc"] == 1 and wrong["e_aurc"] == 0
    assert math.isnan(wrong["auroc"]) and math.isnan(wrong["fpr95"])


def test_a_perfect_score_has_an_excess_that_vanishes_with_n():
    def excess(n):
        return excess_aurc(-np.arange(n), np.arange(n) < 0.7 * n)

    assert excess(100) == pytest.approx(10 * excess(1000), rel=0.1)
    assert 0 < excess(100_000) < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=40))
def test_only_the_order_of_scores_counts_and_not_that_of_rows(rows):
    scores, right = (np.array(column) for column in zip(*rows, strict=True))
    value = misclassification(scores, right)
    order = np.random.default_rng(0).permutation(len(rows))
    for other in (
        misclassification(np.exp(scores), right),
        misclassification(scores[order], right[order]),
    ):
        assert other == pytest.approx(value, nan_ok=True, abs=1e-12)
    assert 0 <= value["aurc"] <= 1
    # No order of clips has a smaller area than right ones first.
    assert value["aurc"] >= aurc(right.astype(float), right) - 1e-12


def test_out_of_distribution_worked_by_hand():
    value = out_of_distribution(np.array([4.0, 3.0, 1.0]), np.array([2.0, 0.0]))
    assert value["auroc"] == pytest.approx(5 / 6)
    assert value["fpr95"] == 1 / 2  # all three inside need threshold 1: 2 is accepted
    assert value["aupr_in"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert value["aupr_out"] == pytest.approx((1 + 2 / 3) / 2)
    # Threshold 3: a third of the inside refused; threshold 1: half of the outside in.
    assert value["detection_error"] == pytest.approx(1 / 6)
    hac = out_of_distribution([4.0, 3.0, 1.0], [2.0, 0.0], positive="outside")
    assert hac["fpr95"] == pytest.approx(1 / 3)  # refusing 0 and 2 refuses 1
    assert {k: hac[k] for k in hac if k != "fpr95"} == {
        k: value[k] for k in value if k != "fpr95"
    }


def test_out_of_distribution_matches_scikit_learn_and_loops():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 150), rng.normal(0, 1, 90)
    scores, label = np.r_[inside, outside], np.r_[np.ones(150), np.zeros(90)]
    value = out_of_distribution(inside, outside)
    assert value["aupr_in"] == pytest.approx(average_precision_score(label, scores))
    assert value["aupr_out"] == pytest.approx(
        average_precision_score(1 - label, -scores)
    )
    assert value["auroc"] == pytest.approx(
        np.mean(inside[:, None] > outside), abs=1e-12
    )
    accepted = math.ceil(0.95 * 150)
    threshold = np.sort(inside)[::-1][accepted - 1]
    assert value["fpr95"] == pytest.approx(np.mean(outside >= threshold))
    errors = [
        (np.mean(inside < t) + np.mean(outside >= t)) / 2 for t in [*scores, np.inf]
    ]
    assert value["detection_error"] == pytest.approx(min(errors))


def test_identical_scores_detect_nothing():
    value = out_of_distribution(np.zeros(30), np.zeros(10))
    assert value["auroc"] == 0.5 and value["detection_error"] == 0.5
    assert value["fpr95"] == 1
    assert value["aupr_in"] == 0.75 and value["aupr_out"] == 0.25


@pytest.mark.parametrize(
    ("scores", "kind", "match"),
    [
        ([], [], r"N >= 1"),
        ([1.0, 2.0], [True], r"\(2,\) and \(1,\)"),
        ([1.0, np.nan], [True, False], "1 of 2 scores are not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, kind, match):
    for measure in (aurc, auroc, fpr_at_tpr, misclassification):
        with pytest.raises(ValueError, match=match):
            measure(scores, kind)


def test_a_side_without_clips_and_missing_predictions_are_refused():
    with pytest.raises(ValueError, match="M=0 outside"):
        out_of_distribution([1.0], [])
    for score in SCORES.values():
        with pytest.raises(ValueError, match="without a prediction"):
            score(np.array([[0.0, np.nan]]))
