"""Intervals cover and tests err as often as they say, by simulation.

A clip's difficulty and a seed's luck are normal on the logit scale. A share p of R
trials has the standard error sqrt(p (1 - p) / R): results may leave their bounds by
three of those of 95 %.
"""

import functools
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from mmaction_mbcd.analysis.statistics import (
    bootstrap_interval,
    mcnemar_test,
    paired_difference,
    supported_best,
)


@functools.cache
def level(accuracy, sd):
    """The logit whose expit has the mean ``accuracy`` under normal noise of ``sd``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    return brentq(lambda m: weights @ expit(m + sd * nodes) - accuracy, -20, 20)


def draw(rng, seeds, difficulty, accuracy, clip_sd, seed_sd):
    """(S, N) of a method whose expected accuracy is ``accuracy``."""
    luck = seed_sd * rng.standard_normal((seeds, 1))
    logits = level(accuracy, math.hypot(clip_sd, seed_sd)) + clip_sd * difficulty + luck
    return rng.random(logits.shape) < expit(logits)


def covered(rng, trials, seeds, targets, clips, accuracy, clip_sd, seed_sd):
    """Of ``trials``: whether the interval holds the true accuracy."""
    if seeds == 1:
        seed_sd = 0  # the interval is about the training at hand
    accuracies = [accuracy - 0.04, accuracy, accuracy + 0.04][-targets:]
    truth, hits = np.mean(accuracies), []
    for _ in range(trials):
        cells = [
            draw(rng, seeds, rng.standard_normal(clips), a, clip_sd, seed_sd)
            for a in accuracies
        ]
        estimate = bootstrap_interval(cells)
        hits.append(estimate.low <= truth <= estimate.high)
    return np.array(hits)


def compared(
    rng, trials, seeds, targets, clips, accuracy, gain, clip_sd, seed_sd, alike=0.8
):
    """Of ``trials``: whether the interval holds the true ``gain``.

    Args:
        seeds: Of method and reference.
        alike: Correlation of a clip's difficulties for the two.
    """
    if min(seeds) == 1:
        seed_sd = 0
    hits = []
    for _ in range(trials):
        cells, reference = [], []
        for _ in range(targets):
            own, other = rng.standard_normal((2, clips))
            other = alike * own + math.sqrt(1 - alike**2) * other
            args = (clip_sd, seed_sd)
            cells.append(draw(rng, seeds[0], own, accuracy + gain, *args))
            reference.append(draw(rng, seeds[1], other, accuracy, *args))
        result = paired_difference(cells, reference)
        hits.append(result.low <= gain <= result.high)
        if gain == 0:
            assert (result.p_value < 0.05) == (not hits[-1])
    return np.array(hits)


def check(hits, low=0.93, high=0.97, nominal=0.95):
    slack = 3 * math.sqrt(nominal * (1 - nominal) / len(hits))
    assert low - slack <= np.mean(hits) <= high + slack


QUICK = [  # seeds, targets, clips, accuracy, clip_sd, seed_sd
    (1, 1, 60, 0.9, 1, 0),
    (1, 3, 180, 0.6, 1, 0),
    (3, 1, 180, 0.6, 1, 0.2),
    (3, 1, 1000, 0.5, 1, 0.3),
    (3, 3, 180, 0.4, 2, 0.1),
    (5, 1, 180, 0.8, 0, 0.3),
    (10, 1, 60, 0.9, 2, 0.1),
]


def test_intervals_cover():
    rng = np.random.default_rng(0)
    hits = [covered(rng, 250, *setting) for setting in QUICK]
    for each in hits:
        check(each)
    check(np.concatenate(hits))


def test_resampled_means_of_three_seeds_would_not_cover():
    """Why the module takes neither percentiles of resamples nor normal quantiles."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(120):
        table = draw(rng, 3, rng.standard_normal(1000), 0.6, 1.0, 0.3)
        seeds = rng.multinomial(3, np.full(3, 1 / 3), 200) / 3
        clips = rng.multinomial(1000, np.full(1000, 1 / 1000), 200) / 1000
        means = np.einsum("rs,rs->r", seeds, clips @ table.T)
        low, high = np.quantile(means, [0.025, 0.975])
        hits.append(low <= 0.6 <= high)
    assert np.mean(hits) < 0.88


def test_two_seeds_are_covered_at_least():
    hits = covered(np.random.default_rng(0), 400, 2, 1, 180, 0.6, 1, 0.2)
    check(hits, high=0.985)


@pytest.mark.parametrize("gain", [0, 0.08])
def test_differences_cover_and_their_test_errs_in_one_of_twenty(gain):
    rng = np.random.default_rng(1)
    hits = [
        compared(rng, 150, (1, 1), 1, 180, 0.6, gain, 1, 0),
        compared(rng, 150, (3, 3), 1, 180, 0.6, gain, 1, 0.2),
        compared(rng, 150, (3, 3), 3, 180, 0.8, gain, 2, 0.1),
        compared(rng, 150, (5, 3), 1, 60, 0.4, gain, 2, 0.3),
    ]
    check(np.concatenate(hits))


@pytest.mark.parametrize("seeds", [1, 3])
def test_mcnemars_test_errs_in_one_of_twenty(seeds):
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(800):
        own, other = rng.standard_normal((2, 400))
        first = draw(rng, seeds, own, 0.6, 1.0, 0)
        second = draw(rng, seeds, (own + other) / math.sqrt(2), 0.6, 1.0, 0)
        errors.append(mcnemar_test(first, second) < 0.05)
    check(errors, low=0.03, high=0.05, nominal=0.05)


def test_of_equal_methods_none_is_supported():
    rng = np.random.default_rng(3)
    claims = []
    for _ in range(150):
        clips = rng.standard_normal(200)
        methods = {m: [draw(rng, 3, clips, 0.6, 1.0, 0.1)] for m in "abcd"}
        claims.append(supported_best(methods).best_supported)
    check(claims, low=0, high=0.05, nominal=0.05)


def table_of(rows, index):
    """Coverage by setting, each over what the table does not name."""
    frame = pd.DataFrame(rows)
    values = frame.groupby(index).hits
    table = values.apply(lambda hits: np.concatenate(list(hits)))
    print("\n" + table.map(np.mean).unstack().round(3).to_string())
    return table


@pytest.mark.long
def test_the_table_of_coverage():
    rng, rows = np.random.default_rng(0), []
    for seeds, targets, clips, accuracy in itertools.product(
        (1, 2, 3, 5, 10), (1, 3), (60, 180, 1000), (0.35, 0.6, 0.9)
    ):
        noises = itertools.product((0, 1, 2), (0, 0.1, 0.3)[: 1 if seeds == 1 else 3])
        for noise in noises:
            setting = dict(seeds=seeds, targets=targets, clips=clips, accuracy=accuracy)
            hits = covered(rng, 100, *setting.values(), *noise)
            rows.append(setting | dict(noise=noise, hits=hits))
    for (seeds, *_), hits in table_of(
        rows, ["seeds", "targets", "clips", "accuracy"]
    ).items():
        check(hits, high=0.985 if seeds == 2 else 0.97)
    for (seeds, _), hits in table_of(rows, ["seeds", "noise"]).items():
        check(hits, high=0.985 if seeds == 2 else 0.97)


@pytest.mark.long
def test_the_table_of_differences():
    rng, rows = np.random.default_rng(0), []
    for seeds, targets, clips, (accuracy, gain) in itertools.product(
        ((1, 1), (2, 2), (3, 3), (5, 3), (10, 10)),
        (1, 3),
        (60, 180, 1000),
        ((0.3, 0), (0.6, 0.05), (0.93, 0.02)),
    ):
        noises = itertools.product(
            ((0, 0), (2, 0.9)), (0, 0.3)[: 1 if seeds == (1, 1) else 2]
        )
        for (clip_sd, alike), seed_sd in noises:
            setting = dict(
                seeds=seeds, targets=targets, clips=clips, accuracy=accuracy, gain=gain
            )
            hits = compared(rng, 100, *setting.values(), clip_sd, seed_sd, alike)
            rows.append(setting | dict(noise=(clip_sd, alike, seed_sd), hits=hits))
    for index in (["seeds", "targets", "clips", "gain"], ["seeds", "noise"]):
        for (seeds, *_), hits in table_of(rows, index).items():
            check(hits, high=0.985 if seeds == (2, 2) else 0.97)
