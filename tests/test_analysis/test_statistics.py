"""Intervals and tests: scipy, statsmodels, slow references, simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit, stdtrit
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from mmaction_mbcd.analysis.statistics import (
    _Variance,
    accuracy_interval,
    bootstrap_interval,
    holm,
    mcnemar_test,
    paired_difference,
    supported_best,
)


def cell(seeds, clips, accuracy=0.6, seed=0, clip_sd=1.0, seed_sd=0.2):
    """(S, N) of right and wrong, clips of unequal difficulty, seeds of unequal luck."""
    rng = np.random.default_rng(seed)
    level = logit(accuracy) + clip_sd * rng.standard_normal(clips)
    level = level + seed_sd * rng.standard_normal((seeds, 1))
    return rng.random((seeds, clips)) < expit(level)


def slow_parts(table):
    """MS_seed, MS_clip and MS_e over S N, by loops over the two-way table."""
    table = np.asarray(table, float)
    s, n = table.shape
    mean = sum(table[k][i] for k in range(s) for i in range(n)) / (s * n)
    rows = [sum(table[k]) / n for k in range(s)]
    columns = [sum(table[k][i] for k in range(s)) / s for i in range(n)]
    rest = sum(
        (table[k][i] - rows[k] - columns[i] + mean) ** 2
        for k in range(s)
        for i in range(n)
    )
    seed = n * sum((r - mean) ** 2 for r in rows) / (s - 1)
    clip = s * sum((c - mean) ** 2 for c in columns) / (n - 1)
    return [x / (s * n) for x in (seed, clip, rest / ((s - 1) * (n - 1)))]


def test_the_moments_are_those_of_resampling_clips_and_seeds():
    """What the module corrects: the variance of 20,000 resamples in mean squares."""
    table = cell(4, 50).astype(float)
    seed, clip, rest = slow_parts(table)
    rng = np.random.default_rng(0)
    seeds = rng.multinomial(4, np.full(4, 1 / 4), 20_000) / 4
    clips = rng.multinomial(50, np.full(50, 1 / 50), 20_000) / 50
    resampled = np.einsum("rs,si,ri->r", seeds, table, clips).var()
    expected = seed * 3 / 4 + clip * 49 / 50 + rest * 3 / 4 * 49 / 50
    assert resampled == pytest.approx(expected, rel=0.05)


def test_the_interval_worked_by_slow_parts():
    table = cell(4, 50)
    seed, clip, rest = slow_parts(table)
    v, q = seed + clip - rest, slow_quantile([(seed, 3), (clip - rest, np.inf)])
    n = table.mean() * (1 - table.mean()) / v + 1
    estimate = bootstrap_interval([table])
    assert estimate.mean == pytest.approx(table.mean())
    assert [estimate.low, estimate.high] == pytest.approx(wilson(table.mean(), n, q))
    assert estimate.covers == "clips and seeds"


def slow_quantile(parts, alpha=0.05):
    total = sum(v for v, _ in parts)
    return sum(v / total * stats.t.ppf(1 - alpha / 2, df) for v, df in parts)


def wilson(p, n, q):
    """The p0 with (p - p0)^2 = q^2 p0 (1 - p0) / n, solved as a quadratic equation."""
    return sorted(np.roots([1 + q**2 / n, -2 * p - q**2 / n, p**2]).real)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_one_seed_has_wilsons_interval_and_covers_clips(confidence):
    table = cell(1, 90)
    estimate = bootstrap_interval([table], confidence=confidence)
    low, high = accuracy_interval(table.mean(), 90, confidence)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.covers == "clips"


@pytest.mark.parametrize("value", [0, 1])
def test_all_right_or_all_wrong_counts_the_clips_once(value):
    estimate = bootstrap_interval([np.full((3, 40), value)])
    low, high = accuracy_interval(value, 40)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_targets_are_averaged_without_weights():
    tables = [cell(3, 40, 0.5, 1), cell(3, 90, 0.7, 2), cell(3, 60, 0.4, 3)]
    estimate = bootstrap_interval(tables)
    parts = np.array([slow_parts(t) for t in tables]) / 9
    seeds = parts[:, 0]
    df = 3 * seeds.sum() ** 2 / (seeds**2).sum() - 1
    clips = (parts[:, 1] - parts[:, 2]).sum()
    q = slow_quantile([(seeds.sum(), df), (clips, np.inf)])
    mean = np.mean([t.mean() for t in tables])
    n = mean * (1 - mean) / (seeds.sum() + clips) + 1
    assert estimate.mean == pytest.approx(mean)
    assert [estimate.low, estimate.high] == pytest.approx(wilson(mean, n, q))


def test_one_seed_each_is_the_paired_t_test():
    a, b = cell(1, 70, 0.7, 1), cell(1, 70, 0.5, 2)
    ours = paired_difference([a], [b])
    theirs = stats.ttest_rel(a[0].astype(float), b[0].astype(float))
    interval = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.difference == pytest.approx(a.mean() - b.mean())
    assert ours.covers == "clips"


def test_the_difference_of_several_seeds_worked_by_slow_parts():
    a, b = cell(3, 80, 0.7, 1), cell(5, 80, 0.5, 2)
    ours = paired_difference([a], [b])
    (seed_a, _, rest_a), (seed_b, _, rest_b) = slow_parts(a), slow_parts(b)
    clips = np.var(a.mean(0) - b.mean(0), ddof=1) / 80 - rest_a - rest_b
    parts = [(seed_a, 2), (seed_b, 4), (clips, 79)]
    half = math.sqrt(seed_a + seed_b + clips) * slow_quantile(parts)
    assert ours.high - ours.low == pytest.approx(2 * half)
    assert ours.covers == "clips and seeds"
    p = ours.p_value
    assert abs(ours.difference) == pytest.approx(
        math.sqrt(seed_a + seed_b + clips) * slow_quantile(parts, p)
    )


def test_where_clips_are_alike_the_difference_is_students_t_test_over_seeds():
    """Each seed right on one half or the other: per-clip means do not vary."""
    half = np.repeat([[1, 0], [0, 1]], 30, axis=1)  # 2 seeds, 60 clips
    a, b = np.vstack([half, half]), np.vstack([half, half])
    a[0, :6], b[1, 40:45] = 0, 0
    ours = paired_difference([a], [b])
    v = (a.mean(1).var(ddof=1) / 4, b.mean(1).var(ddof=1) / 4)
    df = 4 * sum(v) ** 2 / (v[0] ** 2 + v[1] ** 2) - 1
    statistic = (a.mean() - b.mean()) / math.sqrt(sum(v))
    assert ours.p_value == pytest.approx(2 * stats.t.sf(abs(statistic), df))


def test_a_clip_that_occurs_twice_is_one_cluster():
    tables = [cell(3, 40, 0.6, 1), cell(2, 30, 0.5, 2)]
    twice = [np.hstack([t, t]) for t in tables]
    ids = [np.tile(np.arange(t.shape[1]), 2) for t in tables]
    once, joined = bootstrap_interval(tables), bootstrap_interval(twice, ids)
    assert vars(joined) == pytest.approx(vars(once))
    # Taken for as many clips again, one seed's would be shorter by sqrt(2).
    once, wrong = (bootstrap_interval([t[:1]]) for t in (tables[0], twice[0]))
    ratio = (once.high - once.low) / (wrong.high - wrong.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.05)
    others = [cell(3, 40, 0.4, 3), cell(2, 30, 0.6, 4)]
    once = paired_difference(tables, others)
    joined = paired_difference(twice, [np.hstack([t, t]) for t in others], ids)
    assert vars(joined) == pytest.approx(vars(once))
    args = [np.hstack([t, t]) for t in (tables[0], others[0])]
    assert mcnemar_test(*args, ids[0]) == pytest.approx(
        mcnemar_test(tables[0], others[0])
    )


def test_clusters_of_unequal_size_have_the_variance_of_their_resampling():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    table = cell(60, 1, 0.6)[:, 0][ids][None]  # clips of a cluster agree
    draws = rng.integers(0, 60, (4000, 60))
    sums, sizes = np.bincount(ids, table[0]), np.bincount(ids)
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    estimate = bootstrap_interval([table], [ids])
    p = table.mean()
    expected = wilson(p, p * (1 - p) / means.var(), 1.959964)
    assert [estimate.low, estimate.high] == pytest.approx(expected, abs=0.01)


def test_no_discordant_clip_is_no_difference():
    table = cell(2, 50)[[0, 0]]
    same = paired_difference([table], [table])
    assert (same.difference, same.p_value) == (0, 1)
    assert same.low <= 0 <= same.high
    # Equal means of different clips, for degrees of freedom that round either way.
    for seeds, clips in itertools.product((1, 2, 3, 5), (20, 50, 180)):
        tables = [cell(seeds, clips, seed=k) for k in range(3)]
        swapped = paired_difference(tables, tables[::-1])
        assert swapped.p_value == pytest.approx(1)


@pytest.mark.parametrize("df", [1, 2, 2.5, 5, 100])
def test_p_values_of_any_size(df):
    """Where quantiles overflow, some versions of SciPy turn their sign."""
    variance = _Variance({df: 0.3})
    for p in (0.9, 0.05, 1e-9, 1e-80):
        statistic = -stdtrit(df, p / 2)
        assert variance.p_value(statistic) == pytest.approx(p, rel=1e-6)
    mixed = _Variance({df: 0.3, 7.0: 0.1})
    for p in (0.9, 0.05, 1e-9, 1e-80):
        assert mixed.p_value(mixed.quantile(p)) == pytest.approx(p, rel=1e-6)


def test_a_difference_without_any_doubt_has_a_p_value_of_0():
    ones = np.ones((2, 50))
    assert paired_difference([ones], [1 - ones]).p_value == 0
    ones[:, 0] = 0  # one clip the other way: .96 over sqrt((1 - .96^2) / 49) = .04
    p_value = paired_difference([ones], [1 - ones]).p_value
    assert p_value == pytest.approx(2 * stats.t.sf(24, 49))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6), st.floats(0.35, 0.65)
)
def test_the_test_and_the_interval_agree(seeds, others, seed, accuracy):
    a = [cell(seeds, 60, accuracy, seed), cell(seeds, 40, accuracy, seed + 1)]
    b = [cell(others, 60, 0.5, seed + 2), cell(others, 40, 0.5, seed + 3)]
    for level in (0.5, 0.8, 0.95):
        ours = paired_difference(a, b, confidence=level)
        assert (ours.p_value < 1 - level) == (not ours.low <= 0 <= ours.high)
    swapped = paired_difference(b, a)
    assert swapped.difference == pytest.approx(-ours.difference)
    assert swapped.p_value == pytest.approx(ours.p_value)
    # Neither the order of clips nor that of seeds matters.
    order = np.random.default_rng(seed).permutation(60)
    shuffled = paired_difference([a[0][::-1, order], a[1]], [b[0][:, order], b[1]])
    assert vars(shuffled) == pytest.approx(vars(ours), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 1), (12, 25), (40, 41)])
def test_one_seed_each_is_mcnemars_exact_test(b, c):
    """Hand table: 30 both right, b and c one of the two, 10 neither."""
    first = np.repeat([1, 1, 0, 0], [30, b, c, 10])[None]
    second = np.repeat([1, 0, 1, 0], [30, b, c, 10])[None]
    theirs = mcnemar([[30, b], [c, 10]], exact=True).pvalue
    assert mcnemar_test(first, second) == pytest.approx(theirs)


def test_several_seeds_are_compared_by_all_sign_changes():
    a, b = cell(3, 12, 0.8, 1), cell(2, 12, 0.4, 2)
    d = a.mean(0) - b.mean(0)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    share = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9)
    assert mcnemar_test(a, b) == pytest.approx(share)
    scipys = stats.permutation_test(
        (a.mean(0), b.mean(0)),
        lambda x, y: np.sum(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert mcnemar_test(a, b) == pytest.approx(scipys.pvalue)


def test_holm_worked_by_hand():
    adjusted = holm(dict(a=0.01, b=0.04, c=0.03, d=float("nan"), e=0.5))
    # Sorted .01, .03, .04, .5 times 4, 3, 2, 1, and never falling.
    expected = dict(a=0.04, b=0.09, c=0.09, d=float("nan"), e=0.5)
    assert adjusted == pytest.approx(expected, nan_ok=True)
    assert list(adjusted) == list("abcde") and holm({}) == {}
    assert holm(dict(a=0.7, b=0.6)) == dict(a=1.0, b=1.0)


# "same" and "fair" are equally good.
ACCURACIES = dict(poor=0.3, fair=0.6, good=0.9, same=0.6)


def test_the_best_is_supported_where_it_differs_from_every_other():
    better = {m: [cell(3, 900, p, i)] for i, (m, p) in enumerate(ACCURACIES.items())}
    ranking = supported_best(better)
    assert (ranking.best, ranking.second) == ("good", "same")
    assert ranking.best_supported and not ranking.second_supported
    raw = [
        paired_difference(better["good"], better[m]).p_value
        for m in ("same", "fair", "poor")
    ]
    assert list(ranking.p_values) == ["same", "fair", "poor"]
    adjusted = multipletests(raw, method="holm")[1]
    assert list(ranking.p_values.values()) == pytest.approx(adjusted)
    assert ranking.covers == "clips and seeds"


def test_a_best_that_ties_or_stands_alone_is_not_supported():
    table = [cell(2, 100)]
    tied = supported_best(dict(a=table, b=table, c=[~table[0]]))
    assert (tied.best, tied.second) == ("a", "b") and not tied.best_supported
    alone = supported_best(dict(a=table))
    assert (alone.best, alone.second, alone.best_supported) == ("a", None, False)
    assert alone.p_values == {}


@pytest.mark.parametrize(
    ("cells", "clusters", "match"),
    [
        ([], None, "one at least"),
        ([np.ones(5)], None, r"\(5,\)"),
        ([np.ones((2, 1))], None, "two clips"),
        ([np.ones((0, 5))], None, r"\(0, 5\)"),
        ([np.full((2, 5), 0.5)], None, "other values"),
        ([np.ones((2, 5))], [None, None], "2 targets have clusters"),
        ([np.ones((2, 5))], [np.arange(4)], r"\[4, 5\]"),
        ([np.ones((2, 5))], [np.zeros(5)], "one cluster"),
    ],
)
def test_what_is_no_cell_is_refused(cells, clusters, match):
    with pytest.raises(ValueError, match=match):
        bootstrap_interval(cells, clusters)


def test_methods_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\[50, 60\]"):
        paired_difference([cell(2, 50)], [cell(2, 60)])
    with pytest.raises(ValueError, match=r"\[2, 1\]"):
        paired_difference([cell(2, 50)] * 2, [cell(2, 50)])
    with pytest.raises(ValueError, match=r"\[4, 50\]"):
        mcnemar_test(cell(2, 50), cell(2, 50), np.arange(4))
    with pytest.raises(ValueError, match="no method"):
        supported_best({})
