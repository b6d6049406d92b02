"""Uncertainty of accuracies: intervals, differences and tests between methods.

The accuracy of a method varies with the clips that were tested and with the seed it
was trained with. Every seed is tested on the same clips, so that the two are crossed:

    y_si = m + a_s + b_i + e_si        seed s of S, clip i of N, y in {0, 1}.

A *cell* is the array of the ``y_si`` of one method on one target, shape (S, N). Results
over several targets are lists of cells; their average is the unweighted mean of the
targets' accuracies. Trainings for different targets are independent, also where their
seeds have the same number; so are trainings of two methods, while their clips are the
same. Nothing here draws random numbers: equal data give equal digits, and the order of
seeds or clips matters only to the rounding of floating-point sums.

**Where the intervals come from.** Resampling clips and seeds together (Owen 2007, *The
pigeonhole bootstrap*, Annals of Applied Statistics 1(2)) gives the mean a variance that
can be written down. With the mean squares MS_seed, MS_clip and MS_e of the two-way
table it is, up to factors of (S - 1) / S and (N - 1) / N,

    (MS_seed + MS_clip + MS_e) / (S N).

What it is to estimate, the variance of the mean, is var(a) / S + var(b) / N +
var(e) / (S N), the expectation of (MS_seed + MS_clip - MS_e) / (S N): the bootstrap
counts the residual three times and, at S = 3, the seeds by two thirds. So its moments
are used without these errors, in two parts of which neither is expected below 0,

    V = V_seed + V_clip,
    V_seed = MS_seed / (S N),    V_clip = max(0, MS_clip - MS_e) / (S N).

Few seeds tell little about V_seed, so that quantiles of the normal distribution, or of
resampled means, are too short. The quantile used is the average of those of Student's
t, each part's with its degrees of freedom, weighted by the parts' shares of V (Cochran
& Cox 1950, *Experimental Designs*, for two means of unequal variances). Seed variances
v of several targets or methods of equal S are added first; the sum has the degrees of
freedom

    S (sum v)^2 / (sum v^2) - 1,

S - 1 for one variance, and on average between Satterthwaite's estimate, (S - 1) in both
places and 0 for 1, too small for few seeds, and the one without bias in the sum of
squares, S + 1 and 2, too large for unequal variances. Tests use the same quantiles: p <
.05 exactly where the 95 % interval excludes 0.

Simulated coverage of nominal 95 % is in the tests, its table in docs/experiments.md:
within 94 and 97 % from five seeds on, and above where less is known: up to 98.7 % for
two seeds, 98.0 % for three, about 97.5 % for the difference of methods with unequal
numbers of seeds.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.signal import fftconvolve
from scipy.special import ndtri, stdtrit
from scipy.stats import binom, binomtest


def accuracy_interval(
    accuracy: float, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of an accuracy measured on ``count`` clips.

    It covers the sampling of the clips only, not the randomness of training.

    Args:
        accuracy: Fraction of correct clips.
        count: N, the number of clips.
        confidence: Coverage of the interval.

    Returns:
        Lower and upper fraction.

    Raises:
        ValueError: If the accuracy is not a number of clips out of ``count``.
    """
    correct = round(accuracy * count)
    if count < 1 or abs(correct - accuracy * count) > 1e-3:
        raise ValueError(f"an accuracy of {accuracy} is not a share of N={count} clips")
    interval = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return interval.low, interval.high


@dataclass(frozen=True)
class Estimate:
    """An accuracy and its interval, all fractions.

    Attributes:
        mean: Averaged over seeds, clips and targets.
        low: Lower limit.
        high: Upper limit.
        covers: ``clips and seeds``, or ``clips`` where a target has one seed: then the
            interval is about the trainings at hand, not about their method.
    """

    mean: float
    low: float
    high: float
    covers: str


@dataclass(frozen=True)
class Comparison:
    """Method minus reference, fractions.

    Attributes:
        difference: Of the mean accuracies.
        low: Lower limit.
        high: Upper limit.
        p_value: Two-sided, of no difference; below 1 - confidence exactly where the
            interval excludes 0.
        covers: As of :class:`Estimate`.
    """

    difference: float
    low: float
    high: float
    p_value: float
    covers: str


@dataclass(frozen=True)
class _Variance:
    """V in parts of different degrees of freedom: ``{df: part}``."""

    parts: dict[float, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def quantile(self, alpha: float) -> float:
        """Of |mean - truth| / sqrt(V), exceeded with probability ``alpha``."""
        if not self.parts:
            return float(-ndtri(alpha / 2))
        parts = self.parts.items()
        return -sum(v * stdtrit(df, alpha / 2) for df, v in parts) / self.total

    def p_value(self, statistic: float) -> float:
        """The ``alpha`` whose quantile the statistic is; 0 where it is below 1e-100."""
        # Quantiles further out overflow: of few degrees of freedom SciPy 1.17 says +inf
        # for what is -inf, and all would be significant.
        smallest = np.log(1e-100)

        def excess(log_alpha: float) -> float:
            return self.quantile(np.exp(log_alpha)) - abs(statistic)

        if excess(0) >= 0:  # a statistic of 0, up to rounding
            return 1.0
        if excess(smallest) <= 0:
            return 0.0
        return float(np.exp(brentq(excess, smallest, 0, xtol=1e-12)))


def bootstrap_interval(
    cells: Sequence[np.ndarray],
    clusters: Sequence[np.ndarray | None] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Accuracy averaged over targets, with its interval over clips and seeds.

    The module's docstring derives V and the quantile q, of the bootstrap over clips and
    seeds together in closed form. Accuracies near 0 or 1 are skewed, so the limits are
    Wilson's with the number of clips that V amounts to, n = p (1 - p) / V + 1 (an
    effective sample size, as for surveys: Franco et al. 2019, J. Surv. Stat. Methodol.
    7(3)), and q for the normal quantile. For one seed and one target they are those of
    :func:`accuracy_interval`. Where V is 0, as with all clips right, n counts the clips
    themselves.

    Args:
        cells: A target each, (S, N) of whether seed s is right on clip i.
        clusters: Per target None or (N,) ids, equal for rows of the same clip, which
            are drawn together.
        confidence: Coverage.

    Raises:
        ValueError: If there is no cell, or one is not an array (S, N) of 0 and 1 with
            N of at least 2.
    """
    tables = _tables([cells], clusters)
    covers = _covers(tables)
    mean, variance = _contrast(tables, covers, clip_df=np.inf)
    n, q = _effective_clips(tables, mean, variance), variance.quantile(1 - confidence)
    centre = (mean + q**2 / (2 * n)) / (1 + q**2 / n)
    half = q * np.sqrt(mean * (1 - mean) / n + q**2 / (4 * n**2)) / (1 + q**2 / n)
    return Estimate(mean, max(centre - half, 0.0), min(centre + half, 1.0), covers)


def paired_difference(
    cells: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    clusters: Sequence[np.ndarray | None] | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Accuracy of a method minus that of a reference, averaged over targets.

    The test over targets, seeds and clips together: (difference) / sqrt(V) against the
    quantiles of the module's docstring. Clips are paired, seeds are not, so that V has
    the seeds of both methods and, per target, the variance of the per-clip difference
    of seed means, less the residuals in it. With one seed each and one target this is
    the paired t test over clips. Where all predictions are equally right (V = 0), the
    interval is [0, 0] and says nothing of other clips.

    Args:
        cells: Of the method, a target each, (S, N) as in :func:`bootstrap_interval`.
        reference: Of the other method, (S', N) with the same clips in the same order.
        clusters: Per target None or (N,) ids, equal for rows of the same clip.
        confidence: Coverage.

    Raises:
        ValueError: As :func:`bootstrap_interval`; also if the targets or the clips of
            the two do not match.
    """
    tables = _tables([cells, reference], clusters)
    covers = _covers(tables)
    difference, variance = _contrast(tables, covers)
    half = np.sqrt(variance.total) * variance.quantile(1 - confidence)
    if variance.total:
        p_value = variance.p_value(difference / np.sqrt(variance.total))
    else:
        p_value = float(difference == 0)
    low, high = difference - half, difference + half
    return Comparison(difference, max(low, -1.0), min(high, 1.0), p_value, covers)


def mcnemar_test(
    cell: np.ndarray, reference: np.ndarray, clusters: np.ndarray | None = None
) -> float:
    """Whether trained models of two methods differ on one target's clips: two-sided p.

    With one seed each this is the exact McNemar test: of the clips that one of the two
    has right and the other wrong, as many each way. With several seeds it compares the
    per-clip means over seeds: were the methods alike on every clip, each clip's
    difference would be as likely with the other sign, and p is the share of all sign
    changes with a mean difference at least as large (Fisher's permutation test, summed
    exactly; below 1e-12 it is rounding). The result is about these trainings: it does
    not know how other seeds would do, which :func:`paired_difference` does. Like the
    exact McNemar test it is conservative where few clips differ.

    Args:
        cell: (S, N) of whether seed s is right on clip i.
        reference: (S', N), the same clips in the same order.
        clusters: (N,) ids, equal for rows of the same clip: one sign for all.

    Raises:
        ValueError: As :func:`paired_difference`.
    """
    tables = [_table(cell), _table(reference)]
    _check_clips(tables, clusters)
    method, other = tables
    differences = len(other) * method.sum(0) - len(method) * other.sum(0)
    if clusters is not None:
        _, column = np.unique(np.asarray(clusters), return_inverse=True)
        differences = np.bincount(column, differences)
    differences = differences.astype(int)
    return _sign_test(differences // max(np.gcd.reduce(differences), 1))


def _sign_test(differences: np.ndarray) -> float:
    """P(|sum of randomly signed| >= |sum|) of integers."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    # Positive signs add 2 x size each to minus the total; here in steps of 2.
    distribution = np.ones(1)
    for size, count in zip(sizes[sizes > 0], counts[sizes > 0], strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = fftconvolve(distribution, steps)
    total = len(distribution) - 1
    sums = 2 * np.arange(total + 1) - total
    return float(distribution[np.abs(sums) >= abs(differences.sum())].sum().clip(0, 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values of a family, by name: the chance of any false alarm.

    NaN (a missing result) stays NaN and does not count.
    """
    known = {name: p for name, p in p_values.items() if not np.isnan(p)}
    if not known:
        return dict(p_values)
    # p_(i) (m - i), i from 0, never below the one before. statsmodels' multipletests
    # says the same, but collects garbage first: 0.4 s a call beside torch's objects.
    ranked = sorted(known, key=known.__getitem__)
    steps = [known[name] * (len(ranked) - i) for i, name in enumerate(ranked)]
    adjusted = np.maximum.accumulate(steps).clip(max=1).tolist()
    return dict(p_values) | dict(zip(ranked, adjusted, strict=True))


@dataclass(frozen=True)
class Ranking:
    """The two best methods of a column, and whether the data say so.

    Attributes:
        best: Of the highest mean; the first given of equal ones.
        second: Of the next, None if there is one method.
        best_supported: The best differs from every other method.
        second_supported: The second differs from every method below it.
        p_values: Of the best against each other method, adjusted by Holm.
        covers: As of :class:`Estimate`: with ``clips``, support is for the trainings at
            hand, not for the methods.
    """

    best: str
    second: str | None
    best_supported: bool
    second_supported: bool
    p_values: dict[str, float]
    covers: str


def supported_best(
    methods: Mapping[str, Sequence[np.ndarray]],
    clusters: Sequence[np.ndarray | None] | None = None,
    alpha: float = 0.05,
) -> Ranking:
    """Which method of a column is best, and which second, where the data support it.

    The best is compared with every other method by :func:`paired_difference`, and is
    supported if all p values, adjusted by Holm, are below ``alpha``; the second
    likewise against those below it. If methods are equal, one is called best with a
    chance below ``alpha``: it has to differ also from the one next to it. A method with
    nothing to compare with is not supported.

    Args:
        methods: Cells by method, all of the same targets and clips.
        clusters: As in :func:`paired_difference`.
        alpha: Level of the family of comparisons.

    Raises:
        ValueError: If there is no method; as :func:`paired_difference`.
    """
    if not methods:
        raise ValueError("there is no method to be the best")
    means = {m: np.mean([np.mean(c) for c in cells]) for m, cells in methods.items()}
    ranked = sorted(means, key=lambda m: -means[m])

    def against_lower(position: int) -> dict[str, Comparison]:
        first, *lower = ranked[position:]
        return {
            m: paired_difference(methods[first], methods[m], clusters) for m in lower
        }

    best = against_lower(0)
    p_values = holm({m: c.p_value for m, c in best.items()})
    second = against_lower(1) if best else {}
    second_p = holm({m: c.p_value for m, c in second.items()})
    tables = _tables(list(methods.values()), clusters)
    return Ranking(
        best=ranked[0],
        second=ranked[1] if best else None,
        best_supported=bool(best) and max(p_values.values()) < alpha,
        second_supported=bool(second) and max(second_p.values()) < alpha,
        p_values=p_values,
        covers=_covers(tables),
    )


def _tables(methods, clusters) -> list[list[np.ndarray]]:
    """Per target the methods' (S, clusters) tables, checked."""
    targets = len(methods[0])
    if not targets or any(len(cells) != targets for cells in methods):
        counts = [len(cells) for cells in methods]
        raise ValueError(
            f"need the same targets of every method, one at least: {counts}"
        )
    clusters = [None] * targets if clusters is None else clusters
    if len(clusters) != targets:
        raise ValueError(f"{len(clusters)} targets have clusters, {targets} have cells")
    return [
        _joined([_table(cells[k]) for cells in methods], clusters[k])
        for k in range(targets)
    ]


def _table(cell: np.ndarray) -> np.ndarray:
    table = np.asarray(cell)
    if table.ndim != 2 or not len(table) or table.shape[1] < 2:
        raise ValueError(
            f"a cell is (seeds, clips) with two clips at least, not {table.shape}"
        )
    if not ((table == 0) | (table == 1)).all():
        raise ValueError("a cell says right (1) or wrong (0), and holds other values")
    return table.astype(float)


def _check_clips(tables: list[np.ndarray], clusters: np.ndarray | None) -> None:
    sizes = {table.shape[1] for table in tables}
    sizes |= set() if clusters is None else {len(clusters)}
    if len(sizes) > 1:
        raise ValueError(
            f"clips of one target have to match, but N is each of {sorted(sizes)}"
        )


def _joined(tables: list[np.ndarray], clusters: np.ndarray | None) -> list[np.ndarray]:
    """Columns of the same clip as one, such that means stay and clusters vary as drawn.

    The mean is a ratio, of sums by sums over clusters; its first-order change by
    cluster g is sum_(i in g) (y_si - m) / N.
    """
    _check_clips(tables, clusters)
    if clusters is None:
        return tables
    _, column = np.unique(np.asarray(clusters), return_inverse=True)
    count = column.max() + 1
    if count < 2:
        raise ValueError("all clips are one cluster: nothing is drawn independently")
    return [_sums_by_cluster(table, column, count) for table in tables]


def _sums_by_cluster(table: np.ndarray, column: np.ndarray, count: int) -> np.ndarray:
    mean = table.mean()
    sums = np.zeros((len(table), count))
    np.add.at(sums.T, column, (table - mean).T)
    return mean + sums * count / table.shape[1]


def _covers(tables: list[list[np.ndarray]]) -> str:
    several = all(len(table) > 1 for target in tables for table in target)
    return "clips and seeds" if several else "clips"


def _contrast(tables, covers: str, clip_df: float | None = None):
    """Mean over targets of (first minus second method), and its variance."""
    seeds, clips, means = defaultdict(list), [], []
    for target in tables:
        signs = (1, -1)[: len(target)]
        per_clip = sum(s * y.mean(0) for s, y in zip(signs, target, strict=True))
        means.append(per_clip.mean())
        variance = per_clip.var(ddof=1) / len(per_clip)
        if covers == "clips and seeds":
            variance -= sum(_residual(table) for table in target)
            for table in target:
                # An array's variance over its own seeds, residuals in it.
                seeds[len(table)].append(table.mean(1).var(ddof=1) / len(table))
        clips.append((variance, len(per_clip) - 1))
    return float(np.mean(means)), _combined(seeds, clips, clip_df)


def _residual(table: np.ndarray) -> float:
    """MS_e / (S N)."""
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return (rest**2).sum() / degrees / table.size


def _combined(seeds, clips, clip_df) -> _Variance:
    parts: dict[float, float] = defaultdict(float)
    for count, terms in seeds.items():
        v = np.array(terms)
        if v.any():
            df = count * v.sum() ** 2 / (v**2).sum() - 1
            parts[df] += v.sum() / len(clips) ** 2
    v, degrees = np.array(clips).T
    if v.sum() > 0:
        df = clip_df or v.sum() ** 2 / (v**2 / degrees).sum()
        parts[df] += v.sum() / len(clips) ** 2
    return _Variance(dict(parts))


def _effective_clips(tables, mean: float, variance: _Variance) -> float:
    if variance.total and 0 < mean < 1:
        return mean * (1 - mean) / variance.total + 1
    return len(tables) ** 2 / sum(1 / table.shape[1] for (table,) in tables)
