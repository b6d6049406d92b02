"""Detection of wrong predictions, and of clips from elsewhere, by confidence.

A score is high where a prediction is to be trusted: *accepted* clips should be the
right ones (misclassification detection), or those of the distribution that the model
was made for (out-of-distribution detection). The functions take scores (N,) of
:data:`SCORES` or any others; all values depend on the order of scores only, not on
their scale, nor on the order of the rows. What a set does not define is NaN, so that a
table with one perfect model has its other rows: without a wrong clip there is none to
detect.
"""

from typing import Literal

import numpy as np
from scipy.special import entr, logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Threshold = Literal["standard", "nearest"]


def maximum_probability(logits: np.ndarray) -> np.ndarray:
    """Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017): (N, C) to (N,)."""
    return softmax(_checked_logits(logits), axis=1).max(1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Negative free energy, logsumexp of the logits at temperature 1: (N, C) to (N,).

    Liu et al. (NeurIPS 2020), eq. 4 with the sign turned: high is in-distribution.
    """
    return logsumexp(_checked_logits(logits), axis=1)


def negative_entropy(logits: np.ndarray) -> np.ndarray:
    """sum_c p_c ln p_c of the softmax, in nats, at most 0: (N, C) to (N,)."""
    return -entr(softmax(_checked_logits(logits), axis=1)).sum(1)


SCORES = dict(msp=maximum_probability, energy=energy, entropy=negative_entropy)


def misclassification(
    scores: np.ndarray, correct: np.ndarray, threshold: Threshold = "standard"
) -> dict[str, float]:
    """How well a score tells right predictions (positive) from wrong ones.

    Args:
        scores: (N,), high where the prediction is trusted.
        correct: (N,) bool.
        threshold: Of FPR95, see :func:`fpr_at_tpr`.

    Returns:
        Fractions: aurc and e_aurc (:func:`aurc`, :func:`excess_aurc`; the field prints
        them times 1000), auroc and fpr95 (times 100). All right or all wrong: auroc and
        fpr95 are NaN.

    Raises:
        ValueError: If there is no clip, a score is not finite, or the two do not match.
    """
    scores, correct = _checked(scores, correct)
    return dict(
        aurc=aurc(scores, correct),
        e_aurc=excess_aurc(scores, correct),
        auroc=auroc(scores, correct),
        fpr95=fpr_at_tpr(scores, correct, threshold=threshold),
    )


def out_of_distribution(
    inside: np.ndarray,
    outside: np.ndarray,
    positive: Literal["inside", "outside"] = "inside",
) -> dict[str, float]:
    """How well a score tells clips of the distribution from clips of another.

    FPR95 depends on which of the two is positive. In-distribution is the standard
    (Liang et al., ICLR 2018): of the clips from outside, the share that is accepted
    where 95 % from inside are. The evaluation published with HAC takes those from
    outside as positive and the negated score: of the clips from inside, the share that
    is refused where 95 % from outside are. AUROC is the same either way.

    Args:
        inside: Scores (N,) of clips of the distribution, high where trusted.
        outside: Scores (M,) of the others.
        positive: Of fpr95 alone.

    Returns:
        Fractions: auroc, fpr95, aupr_in and aupr_out (average precision with the
        inside, the outside as positive: it depends on N and M, so name them),
        detection_error, min over thresholds of (refused inside + accepted outside) / 2,
        shares of each (Liang et al., both equally likely).

    Raises:
        ValueError: If one side has no clip, or a score is not finite.
    """
    if not np.size(inside) or not np.size(outside):
        raise ValueError(
            "out-of-distribution detection compares clips of two sides, but one has "
            f"none: N={np.size(inside)} inside, M={np.size(outside)} outside"
        )
    is_inside = np.arange(np.size(inside) + np.size(outside)) < np.size(inside)
    scores, is_inside = _checked(np.concatenate([inside, outside]), is_inside)
    fpr, tpr, _ = roc_curve(is_inside, scores, drop_intermediate=False)
    sided = (scores, is_inside) if positive == "inside" else (-scores, ~is_inside)
    return dict(
        auroc=auroc(scores, is_inside),
        fpr95=fpr_at_tpr(*sided),
        aupr_in=float(average_precision_score(is_inside, scores)),
        aupr_out=float(average_precision_score(~is_inside, -scores)),
        detection_error=float(((1 - tpr + fpr) / 2).min()),
    )


def aurc(scores: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv, NeurIPS 2017), in [0, 1].

    AURC = mean over k = 1..N of the share of wrong clips among the k with the highest
    scores. Clips of equal score count with their mean risk, the expectation of ordering
    them at random; the published evaluations keep the order of the rows instead.

    Raises:
        ValueError: As :func:`misclassification`.
    """
    scores, correct = _checked(scores, correct)
    _, group = np.unique(-scores, return_inverse=True)
    # A clip's chance to be wrong, by score, in falling order of scores.
    share = np.bincount(group, ~correct) / np.bincount(group)
    wrong = np.cumsum(share[np.sort(group)])
    return float((wrong / np.arange(1, len(scores) + 1)).mean())


def excess_aurc(scores: np.ndarray, correct: np.ndarray) -> float:
    """AURC above that of a perfect score (Geifman et al., ICLR 2019).

    E-AURC = AURC - (r + (1 - r) ln(1 - r)), r the share of wrong clips. The formula,
    also that of the published evaluations, is the perfect score's limit for many clips:
    with N clips a perfect score has an E-AURC of the order of 1 / N, not exactly 0.
    """
    scores, correct = _checked(scores, correct)
    risk = 1 - correct.mean()
    # x ln x, 0 at 0: entr's is its negative.
    return aurc(scores, correct) - float(risk - entr(1 - risk))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive outscores a negative, ties a half; NaN with one kind."""
    scores, positive = _checked(scores, positive)
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, scores))


def fpr_at_tpr(
    scores: np.ndarray,
    positive: np.ndarray,
    tpr: float = 0.95,
    threshold: Threshold = "standard",
) -> float:
    """Share of negatives accepted where a share of positives is; NaN with one kind.

    Args:
        scores: (N,), accepted from a threshold upwards.
        positive: (N,) bool.
        tpr: Share of positives.
        threshold: ``standard``: the highest that accepts at least ``tpr`` of the
            positives. ``nearest``: the one whose share is nearest to ``tpr``, the
            highest of equally near ones, as the evaluation published with HAC has it
            for wrong predictions; it may accept fewer, and so is the smaller FPR.

    Raises:
        ValueError: As :func:`misclassification`.
    """
    scores, positive = _checked(scores, positive)
    if positive.all() or not positive.any():
        return float("nan")
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    # Shares of counts: 19 / 20 must reach .95 whatever its last bit.
    short = np.round(true * positive.sum() - tpr * positive.sum(), 9)
    index = np.argmax(short >= 0) if threshold == "standard" else np.abs(short).argmin()
    return float(false[index])


def _checked(scores, kind) -> tuple[np.ndarray, np.ndarray]:
    scores, kind = np.asarray(scores, dtype=float), np.asarray(kind)
    if scores.ndim != 1 or scores.shape != kind.shape or not len(scores):
        raise ValueError(
            "need a score and a truth value for each of N >= 1 clips, not "
            f"{scores.shape} and {kind.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite: "
            "leave out clips without a prediction"
        )
    return scores, kind.astype(bool)


def _checked_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, dtype=float)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(
            f"need finite logits (N, C), got {logits.shape}: leave out clips without a "
            "prediction"
        )
    return logits
