"""The compared methods' formulas against slow references written from them."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mmaction_mbcd.models import mmdg_functional as F

NAMES = ("video", "audio", "flow", "depth")
SIZES = [1, 2, 3, 7, 12]


def rand(*shape, **kwargs):
    return torch.randn(*shape, dtype=torch.float64, **kwargs)


def sphere(*shape):
    x = rand(*shape)
    return x / x.norm(dim=-1, keepdim=True)


def mask(count, keep):
    """All samples (None), or those whose position is in ``keep``."""
    return None if keep is None else torch.tensor([i in keep for i in range(count)])


def there(count, keep):
    return [i for i in range(count) if keep is None or i in keep]


def norm(v):
    return math.sqrt(sum(x * x for x in v))


def softmax(row):
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def entropy(p, eps=0.0):
    return -sum(v * math.log(v + eps) for v in p)


def close(value, expected, rel=1e-10, abs=1e-13):
    assert value.item() == pytest.approx(expected, rel=rel, abs=abs)


def leaf(x):
    return x.clone().requires_grad_()


def finite_gradient(function, *inputs):
    """Value and gradients, all finite."""
    inputs = [leaf(x) for x in inputs]
    value = function(*inputs)
    assert torch.isfinite(value)
    gradients = torch.autograd.grad(value, inputs)
    assert all(torch.isfinite(g).all() for g in gradients)
    return value, gradients


# ------------------------------------------------------------------- common parts


def test_pairs_in_declared_order():
    assert F.modality_pairs(["a", "b", "c"], "x") == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    with pytest.raises(ValueError, match=r"Frob compares.*two; got \['video'\]"):
        F.modality_pairs(["video"], "Frob")


def test_unit_rows_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-9]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(F.unit_rows(x), expected, rtol=0, atol=1e-15)
    _, (gradient,) = finite_gradient(lambda v: F.unit_rows(v).sum(), x[:2])
    # d/dx of (x + y) / ||(x, y)|| at (3, 4): y (y - x) / 125, -x (y - x) / 125.
    expected = torch.tensor([[4 / 125, -3 / 125], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(gradient, expected, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision(dtype):
    x = torch.full((2, 400), 200.0, dtype=dtype)  # its square overflows float16
    assert F.row_norms(x).tolist() == [4000.0, 4000.0]
    assert F.unit_rows(x).dtype == torch.float32


# ------------------------------------------------------------------------ RNA-Net


def alignment_reference(p, q, rows):
    if not rows:
        return 0.0
    n_p = sum(norm(p[i]) for i in rows) / len(rows)
    n_q = sum(norm(q[i]) for i in rows) / len(rows)
    return (n_p / n_q - 1) ** 2


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("keep", [None, {0, 2}, set()])
def test_norm_alignment(count, keep):
    p, q = rand(count, 5), 3 * rand(count, 4)
    expected = alignment_reference(p.tolist(), q.tolist(), there(count, keep))
    close(F.norm_alignment(p, q, mask(count, keep)), expected)


def test_norm_alignment_by_hand_and_not_symmetric():
    # Norms 5 and 1, mean 3; norms 2 and 2, mean 2: (3/2 - 1)^2 and (2/3 - 1)^2.
    p = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    close(F.norm_alignment(p, q), 0.25)
    close(F.norm_alignment(q, p), 1 / 9)
    assert gradcheck(F.norm_alignment, (leaf(p), leaf(q)))


def test_norm_alignment_of_zeros():
    p, q = rand(3, 4), torch.zeros(3, 2, dtype=torch.float64)
    value, gradients = finite_gradient(F.norm_alignment, p, q)
    assert value == 0 and all((g == 0).all() for g in gradients)
    value, _ = finite_gradient(F.norm_alignment, q, p)
    assert value == 1  # (0 / n - 1)^2
    q[0] = 1.0  # one row with a norm is enough
    close(F.norm_alignment(p, q), alignment_reference(p.tolist(), q.tolist(), range(3)))


@pytest.mark.parametrize(
    ("names", "denominator", "expected"),
    [
        ("vaf", "a", ["va", "vf", "fa"]),
        ("vaf", None, ["va", "vf", "af"]),
        ("vf", "a", ["vf"]),
        ("avf", "a", ["va", "fa", "vf"]),
        ("vafd", "f", ["va", "vf", "vd", "af", "ad", "df"]),
    ],
)
def test_directed_pairs(names, denominator, expected):
    pairs = F.directed_pairs(F.modality_pairs(names, "x"), denominator)
    assert ["".join(pair) for pair in pairs] == expected


# ------------------------------------------------------------------------ SimMMDG


def distance_reference(a, b, rows):
    total = 0.0
    for i in rows:
        na, nb = norm(a[i]), norm(b[i])
        total += norm([x / na - y / nb for x, y in zip(a[i], b[i], strict=True)])
    return total / max(len(rows), 1)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("keep", [None, {0, 2}, set()])
def test_unit_distance(count, keep):
    a, b = rand(count, 5), rand(count, 5)
    expected = distance_reference(a.tolist(), b.tolist(), there(count, keep))
    close(F.unit_distance(a, b, mask(count, keep)), expected)


def test_unit_distance_by_hand():
    # Directions at right angles are sqrt(2) apart, opposite ones 2.
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 7.0], [0.0, -0.1]], dtype=torch.float64)
    close(F.unit_distance(a, b), (math.sqrt(2) + 2) / 2)
    close(F.unit_distance(a, b, torch.tensor([True, False])), math.sqrt(2))


def test_unit_distance_gradients():
    assert gradcheck(F.unit_distance, (leaf(rand(4, 3)), leaf(rand(4, 3))))
    same, zero = rand(2, 3), torch.zeros(2, 3, dtype=torch.float64)
    for a, b in [(same, 2 * same), (same, zero), (zero, zero)]:
        finite_gradient(F.unit_distance, a, b)
    close(F.unit_distance(same, zero), 1.0)


def contrastive_reference(embeddings, labels, present, tau, tau_0):
    """Loops over anchors; ``present`` is ``{modality: rows}``."""
    anchors = [
        (e[i].tolist(), labels[i])
        for m, e in embeddings.items()
        for i in range(len(labels))
        if i in present[m]
    ]
    total = 0.0
    for i, (e, y) in enumerate(anchors):
        others = [a for j, a in enumerate(anchors) if j != i]
        scores = [
            sum(a * b for a, b in zip(e, o, strict=True)) / tau for o, _ in others
        ]
        positives = [
            s for s, (_, label) in zip(scores, others, strict=True) if label == y
        ]
        if positives:
            log_sum = math.log(sum(math.exp(s) for s in scores))
            total += sum(s - log_sum for s in positives) / len(positives)
    return -tau / tau_0 * total / max(len(anchors), 1)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("taus", [(0.1, 0.07), (0.5, 0.2)])
@pytest.mark.parametrize("missing", [False, True])
def test_supervised_contrastive(count, modalities, taus, missing):
    embeddings = {m: sphere(count, 6) for m in NAMES[:modalities]}
    labels = torch.arange(count) % 3
    rows = {
        m: {i for i in range(count) if not missing or (i + k) % 3}
        for k, m in enumerate(embeddings)
    }
    expected = contrastive_reference(embeddings, labels.tolist(), rows, *taus)
    present = {m: mask(count, keep) for m, keep in rows.items()} if missing else None
    close(F.supervised_contrastive(embeddings, labels, present, *taus), expected)


def test_supervised_contrastive_by_hand():
    # Four anchors on two orthogonal axes, labels by axis. Each has one positive at
    # similarity 1 and two others at 0: -log(e^10 / (e^10 + 2)), times 0.1 / 0.07.
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    loss = F.supervised_contrastive({"a": e, "b": e}, torch.tensor([0, 1]))
    close(loss, 0.1 / 0.07 * math.log1p(2 * math.exp(-10)), rel=1e-9)


def test_supervised_contrastive_has_the_published_factor():
    e, y = {m: sphere(8, 5) for m in NAMES[:2]}, torch.arange(8) % 3
    plain = F.supervised_contrastive(e, y, base_temperature=0.1)  # tau / tau_0 = 1
    assert F.supervised_contrastive(e, y) / plain == pytest.approx(1.0 / 0.7)


def test_an_anchor_without_a_positive_counts_in_the_mean():
    e = {"video": sphere(3, 4)}
    alone = F.supervised_contrastive(e, torch.tensor([0, 1, 2]))
    assert alone == 0
    pair = F.supervised_contrastive(e, torch.tensor([0, 0, 2]))
    present = {"video": torch.tensor([True, True, True])}
    s = (e["video"] @ e["video"].T / 0.1).tolist()
    terms = [
        math.log(math.exp(s[0][1]) + math.exp(s[0][2])) - s[0][1],
        math.log(math.exp(s[1][0]) + math.exp(s[1][2])) - s[1][0],
        0.0,
    ]
    close(pair, 0.1 / 0.07 * sum(terms) / 3)
    assert F.supervised_contrastive(e, torch.tensor([0, 0, 2]), present) == pair


def test_supervised_contrastive_gradients():
    y = torch.tensor([0, 1, 0, 2, 2])
    has = {"a": mask(5, {0, 2, 3}), "b": mask(5, {1, 2, 4})}

    def loss(a, b):
        return F.supervised_contrastive({"a": a, "b": b}, y, has)

    assert gradcheck(loss, (leaf(rand(5, 3)), leaf(rand(5, 3))))
    zeros = torch.zeros(5, 3, dtype=torch.float64)
    finite_gradient(loss, zeros, zeros)
    nobody = {"a": mask(5, set()), "b": mask(5, set())}
    value, gradients = finite_gradient(
        lambda a, b: F.supervised_contrastive({"a": a, "b": b}, y, nobody),
        rand(5, 3),
        rand(5, 3),
    )
    assert value == 0 and all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("keep", [None, {0, 2}, set()])
def test_half_distance(count, keep):
    z = rand(count, 6)
    rows = there(count, keep)
    total = sum((z[i, c] - z[i, c + 3]).item() ** 2 for i in rows for c in range(3))
    close(F.half_distance(z, mask(count, keep)), total / 3 / max(len(rows), 1))


def test_half_distance_by_hand():
    # (1 - 3)^2 and (2 - 5)^2: mean 6.5.
    z = torch.tensor([[1.0, 2.0, 3.0, 5.0]], dtype=torch.float64)
    close(F.half_distance(z), 6.5)
    assert gradcheck(F.half_distance, (leaf(rand(3, 4)),))


def test_halves_of_an_odd_width():
    shared, specific = F.halves(torch.arange(5.0).unsqueeze(0))
    assert shared.tolist() == [[0, 1]] and specific.tolist() == [[2, 3, 4]]


# -------------------------------------------------------------------------- MOOSA


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("sets", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("missing", [False, True])
def test_entropy_weights(count, sets, temperature, missing):
    logits = {s: 2 * rand(count, 4) for s in range(sets)}
    rows = {s: set(range(s if missing else 0, count)) | {0} for s in logits}
    present = {s: mask(count, rows[s]) if missing else None for s in logits}
    weights = F.entropy_weights(logits, present, temperature)
    for i in range(count):
        scores = {
            s: math.exp(-entropy(softmax(own[i].tolist())) / temperature)
            for s, own in logits.items()
            if i in rows[s]
        }
        for s in logits:
            expected = scores.get(s, 0.0) / sum(scores.values())
            assert weights[s][i].item() == pytest.approx(expected, abs=1e-14)


def test_entropy_weights_by_hand():
    # Entropies ln 2 and 0 (to 1e-40): weights 1/2 : 1, that is 1/3 and 2/3.
    flat = torch.zeros(1, 2, dtype=torch.float64)
    sure = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    weights = F.entropy_weights({"v": flat, "": sure}, {"v": None, "": None})
    close(weights["v"], 1 / 3)
    close(weights[""], 2 / 3)
    nobody = torch.tensor([False])
    weights = F.entropy_weights({"v": flat, "": sure}, {"v": nobody, "": nobody})
    assert [w.item() for w in weights.values()] == [0.5, 0.5]


def test_entropy_weights_are_not_detached():
    def first(a, b):
        present = {"a": torch.tensor([True, True, False]), "b": None}
        return F.entropy_weights({"a": a, "b": b}, present)["a"]

    assert gradcheck(first, (leaf(rand(3, 4)), leaf(rand(3, 4))))
    _, (gradient, _) = finite_gradient(
        lambda a, b: first(a, b).sum(), rand(3, 4), rand(3, 4)
    )
    assert gradient[:2].abs().max() > 0 and (gradient[2] == 0).all()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("keep", [None, {0, 2}, set()])
def test_smoothed_entropy(count, eps, keep):
    logits, rows = rand(count, 4), there(count, keep)
    expected = sum(entropy(softmax(logits[i].tolist()), eps) for i in rows)
    value = F.smoothed_entropy(logits, mask(count, keep), eps)
    close(value, expected / max(len(rows), 1))


def test_smoothed_entropy_by_hand():
    flat = torch.zeros(2, 4, dtype=torch.float64)
    close(F.smoothed_entropy(flat), -math.log(0.25 + 1e-5))
    sure = torch.tensor([[2000.0, 0.0]])  # p = 0 must not give 0 * -inf
    value, _ = finite_gradient(F.smoothed_entropy, sure)
    assert value.item() == pytest.approx(-math.log(1 + 1e-5), rel=0.02)
    assert gradcheck(F.smoothed_entropy, (leaf(rand(3, 4)),))


@pytest.mark.parametrize(("count", "items"), [(1, 1), (24, 4), (128, 8), (128, 12)])
def test_permutations_are_distinct_and_repeatable(count, items):
    found = F.draw_permutations(count, items)
    assert found.shape == (count, items)
    assert torch.equal(found.sort(dim=1).values, torch.arange(items).expand(count, -1))
    assert len({tuple(row) for row in found.tolist()}) == count
    assert torch.equal(found, F.draw_permutations(count, items))
    if items > 4:
        assert not torch.equal(found, F.draw_permutations(count, items, seed=1))


def test_permutations_are_never_listed(monkeypatch):
    def refuse(*_):
        raise AssertionError("20! orders must not be listed")

    monkeypatch.setattr(itertools, "permutations", refuse)
    state = torch.get_rng_state()
    assert len(F.draw_permutations(128, 20)) == 128
    assert torch.equal(state, torch.get_rng_state())


def test_permutations_are_uniform():
    # Of 24 orders, 6 are drawn for each of 400 seeds: each is in 100 +- 8.7 draws.
    seen = {}
    for seed in range(400):
        for row in F.draw_permutations(6, 4, seed).tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert len(seen) == 24
    assert all(abs(n - 100) < 4.5 * 8.7 for n in seen.values())


def test_more_permutations_than_there_are():
    with pytest.raises(ValueError, match="4 pieces have 24 orders; 25 different"):
        F.draw_permutations(25, 4)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_permuted_pieces(parts, modalities):
    widths = dict(zip(NAMES, (parts, 3 * parts, 2 * parts), strict=False))
    z = {m: rand(5, widths[m]) for m in NAMES[:modalities]}
    orders = F.draw_permutations(2, parts * modalities, seed=3)
    got = F.permuted_pieces(z, orders, parts)
    for k, order in enumerate(orders.tolist()):
        for i in range(5):
            pieces = []
            for own in z.values():
                row, width = own[i].tolist(), own.shape[1] // parts
                pieces += [row[c * width : (c + 1) * width] for c in range(parts)]
            expected = [v for piece in order for v in pieces[piece]]
            assert got[k, i].tolist() == expected


# --------------------------------------------------------------------------- CMRF


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_interpolation_ratios(alpha):
    count = 20000
    above, below = F.draw_interpolation(alpha, count, rand(1))
    assert above.shape == below.shape == (count, 1)
    assert above.dtype == torch.float64
    assert 0.5 <= above.min() and above.max() <= 1
    assert 0 <= below.min() and below.max() <= 0.5
    # Conditioning by rejection, as the method is stated.
    draws = np.random.default_rng(0).beta(alpha, alpha, 3 * count)
    for got, kept in ((above, draws[draws > 0.5]), (below, draws[draws < 0.5])):
        got = np.sort(got.squeeze(1).numpy())
        kept = np.sort(kept)
        points = np.concatenate([got, kept])
        gap = np.searchsorted(got, points, "right") / len(got)
        gap -= np.searchsorted(kept, points, "right") / len(kept)
        # Kolmogorov-Smirnov; 2.2 sqrt(1/n + 1/m) is exceeded once in 8,000.
        assert abs(gap).max() < 2.2 * math.sqrt(1 / len(got) + 1 / len(kept))
    # Independent of each other: a fifth standard deviation of the correlation.
    pair = torch.cat([above, below], dim=1).T
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(count)


def test_interpolation_at_small_alpha():
    # Density a / (2 x (1 - x)) away from the ends: P(.4 < b < .6) = a ln 1.5. Were the
    # two gammas behind a draw in float32, both would underflow with P = 0.17.
    above, below = F.draw_interpolation(0.01, 5000, torch.empty(1))
    for near in ((above < 0.6), (below > 0.4)):
        assert near.float().mean() < 0.01 * math.log(1.5) + 5 * math.sqrt(0.004 / 5000)


def test_interpolation_follows_torch_s_generator():
    torch.manual_seed(4)
    first = F.draw_interpolation(0.1, 3, torch.empty(1))
    torch.manual_seed(4)
    second = F.draw_interpolation(0.1, 3, torch.empty(1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_interpolated_teachers_by_hand():
    p, q = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    above, below = torch.tensor([[0.75], [1.0]]), torch.tensor([[0.25], [0.0]])
    t_p, t_q = F.interpolated_teachers(p, q, above, below)
    assert t_p.tolist() == [[0.75, 0.25], [1.0, 0.0]]
    assert t_q.tolist() == [[0.25, 0.75], [0.0, 1.0]]
    # The distillation of the first sample: || u(3, 1) - (1, 0) ||.
    expected = math.sqrt((3 / math.sqrt(10) - 1) ** 2 + 1 / 10)
    close(F.unit_distance(t_p, p, torch.tensor([True, False])), expected, rel=1e-6)


# ---------------------------------------------------------------------------- JAT


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("missing", [False, True])
def test_confusion_weights(count, modalities, temperature, missing):
    logits = {m: 2 * rand(count, 3) for m in NAMES[:modalities]}
    rows = {
        m: [i for i in range(count) if not missing or k < i]
        for k, m in enumerate(logits)
    }
    present = {m: mask(count, set(rows[m])) for m in logits}
    weights, entropies = F.confusion_weights(logits, present, temperature)
    expected = {
        m: sum(entropy(softmax(own[i].tolist())) for i in rows[m]) / len(rows[m])
        for m, own in logits.items()
        if rows[m]
    }
    exps = {m: math.exp(h / temperature) for m, h in expected.items()}
    for m in logits:
        close(entropies[m], expected.get(m, 0.0))
        share = exps.get(m, 0.0) / sum(exps.values()) if exps else 1 / modalities
        close(weights[m], share)


def test_confusion_weights_by_hand():
    # H = ln 2 and 0: the modality whose domain cannot be told gets 2/3.
    logits = {"v": torch.zeros(2, 2), "a": torch.tensor([[100.0, 0.0], [0.0, 100.0]])}
    present = {m: torch.ones(2, dtype=torch.bool) for m in logits}
    weights, _ = F.confusion_weights(logits, present)
    close(weights["v"], 2 / 3, rel=1e-6)
    close(weights["a"], 1 / 3, rel=1e-6)


def test_confusion_weights_are_not_detached():
    present = {m: torch.ones(3, dtype=torch.bool) for m in "ab"}
    assert gradcheck(
        lambda a, b: F.confusion_weights({"a": a, "b": b}, present)[0]["a"],
        (leaf(rand(3, 4)), leaf(rand(3, 4))),
    )


# ---------------------------------------------------------------------------- NEL


def shift_reference(e, rows, k):
    out = {}
    for i in rows:
        others = sorted((j for j in rows if j != i), key=lambda j: -float(e[i] @ e[j]))
        mean = sum((e[j] for j in others[:k]), torch.zeros_like(e[i]))
        m = 0.5 * e[i] + 0.5 * mean / max(len(others[:k]), 1)
        out[i] = (m / norm(m.tolist())).tolist()
    return out


@pytest.mark.parametrize("count", [2, 3, 8, 20])
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("keep", [None, {0, 1}, {1}])
def test_mean_shift(count, k, keep):
    e = sphere(count, 4)
    got = F.mean_shift(e, mask(count, keep), k)
    for i, expected in shift_reference(e, there(count, keep), k).items():
        assert got[i].tolist() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    assert torch.isfinite(got).all()


def test_mean_shift_by_hand():
    # The nearest to (1, 0) is (.8, .6): u(.5 (1, 0) + .5 (.8, .6)) = u(.9, .3).
    e = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]], dtype=torch.float64)
    got = F.mean_shift(e, neighbours=1)[0]
    assert got.tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
    one = F.mean_shift(e[:1])
    assert one.tolist() == [[1.0, 0.0]]


def test_mean_shift_drops_itself_by_position():
    # Two equal rows: each is the other's nearest, not its own.
    e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    got = F.mean_shift(e, neighbours=1)
    assert got[:2].tolist() == [[1.0, 0.0]] * 2


def test_mean_shift_gradients():
    e = sphere(6, 3)
    has = mask(6, {0, 2, 3, 5})
    assert gradcheck(lambda x: F.mean_shift(x, has, 2)[has], (leaf(e),))
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    finite_gradient(lambda x: F.mean_shift(x).sum(), zeros)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("temperature", [0.25, 1.0])
@pytest.mark.parametrize("keep", [None, {0, 2}, set()])
def test_view_contrast(count, temperature, keep):
    first, second = rand(count, 4), rand(count, 4)
    rows = there(count, keep)
    total = 0.0
    for i in rows:
        scores = [
            float(first[i] @ second[j])
            / norm(first[i].tolist())
            / norm(second[j].tolist())
            / temperature
            for j in rows
        ]
        total -= math.log(softmax(scores)[rows.index(i)])
    value = F.view_contrast(first, second, mask(count, keep), temperature)
    close(value, total / max(len(rows), 1))


def test_view_contrast_by_hand_and_one_direction():
    # First views (1,0), (0,1); second views (1,0), (1,0): at tau = 1/4 the scores are
    # (4, 4) and (0, 0), so ln 2 each. In the other direction: (4, 0) twice, of which
    # one is right: (log(1 + e^-4) + log(1 + e^4)) / 2.
    first = torch.eye(2, dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    close(F.view_contrast(first, second), math.log(2))
    expected = (math.log1p(math.exp(-4)) + math.log1p(math.exp(4))) / 2
    close(F.view_contrast(second, first), expected)


def test_view_contrast_gradients():
    has = mask(4, {0, 1, 3})
    inputs = (leaf(rand(4, 3)), leaf(rand(4, 3)))
    assert gradcheck(lambda a, b: F.view_contrast(a, b, has), inputs)
    finite_gradient(F.view_contrast, torch.zeros(3, 2), torch.zeros(3, 2))
    finite_gradient(
        lambda a, b: F.view_contrast(a, b, mask(3, set())), rand(3, 2), rand(3, 2)
    )


def wide_spectral_entropy(z):
    """The published route: the d x d matrix."""
    values = torch.linalg.eigvalsh(z.T @ z / len(z))
    values = values[values > 1e-6]
    share = values / values.sum()
    return (share * (share + 1e-10).log()).sum()


@pytest.mark.parametrize(("count", "d"), [(1, 5), (3, 7), (8, 30), (12, 5), (32, 40)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_spectral_entropy_equals_the_wide_route(count, d, scale):
    z = scale * rand(count, d)
    values = []
    for route in (F.negative_spectral_entropy, wide_spectral_entropy):
        values.append(finite_gradient(route, z))
    close(values[0][0], values[1][0].item(), rel=1e-11)
    assert torch.allclose(*(g[0] for _, g in values), rtol=1e-8, atol=1e-11 / scale)
    lam = np.linalg.eigvalsh(z.numpy().T @ z.numpy() / count)
    lam = lam[lam > 1e-6] / lam[lam > 1e-6].sum()
    close(values[0][0], (lam * np.log(lam + 1e-10)).sum(), rel=1e-10)


def test_spectral_entropy_by_hand():
    # Eigenvalues 9/2 and 16/2 of Z^T Z / 2: shares 9/25 and 16/25.
    z = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    expected = 0.36 * math.log(0.36) + 0.64 * math.log(0.64)
    close(F.negative_spectral_entropy(z), expected, rel=1e-8)
    # Four equal directions: -log 4; one direction: 0.
    close(
        F.negative_spectral_entropy(2 * torch.eye(4).double()), -math.log(4), rel=1e-8
    )
    assert abs(F.negative_spectral_entropy(torch.ones(4, 3).double())) < 1e-9
    assert F.negative_spectral_entropy(torch.zeros(3, 2)) == 0


@pytest.mark.parametrize(("small", "kept"), [(1.5e-6, True), (0.7e-6, False)])
def test_spectral_entropy_cuts_eigenvalues_off(small, kept):
    # Eigenvalues 1 and ``small`` of the two present rows, over N = 2, not 4.
    z = torch.zeros(4, 3, dtype=torch.float64)
    z[0, 0], z[2, 1] = math.sqrt(2), math.sqrt(2 * small)
    share = small / (1 + small)
    expected = share * math.log(share) + (1 - share) * math.log(1 - share)
    value = F.negative_spectral_entropy(z, mask(4, {0, 2})).item()
    assert value == pytest.approx(kept * expected, rel=1e-3, abs=2e-10)


def test_spectral_entropy_admits_no_noise_in_float32():
    # Rank 2 and a largest eigenvalue of 1e4: float32's rounding is 1e-3, a thousand
    # cut-offs, and would let all 16 through.
    z = (100 * torch.randn(16, 2) @ torch.randn(2, 50)).float()
    exact = wide_spectral_entropy(z.double()).item()
    assert F.negative_spectral_entropy(z).item() == pytest.approx(exact, rel=1e-6)


def test_spectral_entropy_of_some_rows():
    z, has = rand(6, 4), mask(6, {0, 1, 4})
    close(F.negative_spectral_entropy(z, has), wide_spectral_entropy(z[has]).item())
    assert gradcheck(lambda x: F.negative_spectral_entropy(x, has), (leaf(z),))
    value, _ = finite_gradient(lambda x: F.negative_spectral_entropy(x, has & False), z)
    assert value == 0
    finite_gradient(F.negative_spectral_entropy, torch.zeros(4, 3))
    finite_gradient(F.negative_spectral_entropy, torch.ones(4, 3))
    # Equal eigenvalues, where single eigenvectors are not defined.
    _, (gradient,) = finite_gradient(F.negative_spectral_entropy, torch.eye(3).double())
    assert gradient.abs().max() < 1e-8  # the most even spectrum


# ------------------------------------------------------------------------- MER-DG


@pytest.mark.parametrize("count", [2, 3, 7, 30])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("keep", [None, {0, 1, 2}])
def test_spread_shortfall(count, gamma, keep):
    z, rows = rand(count, 5), there(count, keep)
    std = z.numpy()[rows].std(axis=0, ddof=1)
    value = F.spread_shortfall(z, mask(count, keep), gamma)
    close(value, sum(max(0.0, gamma - s) for s in std) / 5)


def test_spread_shortfall_by_hand():
    # Channels (0, 1) and (0, 4): std 1 / sqrt(2) and 4 / sqrt(2).
    z = torch.tensor([[0.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    close(F.spread_shortfall(z), (1 - 1 / math.sqrt(2)) / 2)
    assert gradcheck(F.spread_shortfall, (leaf(0.3 * rand(4, 3)),))
    value, (gradient,) = finite_gradient(F.spread_shortfall, torch.ones(4, 3))
    assert value == 1 and (gradient == 0).all()


@pytest.mark.parametrize(("count", "d"), [(2, 3), (3, 8), (9, 4), (30, 6)])
@pytest.mark.parametrize("eps", [1e-4, 0.1])
@pytest.mark.parametrize("keep", [None, {0, 1, 2}])
def test_correlation_log_volume(count, d, eps, keep):
    z = rand(count, d) * torch.logspace(-2, 2, d, dtype=torch.float64)
    wide = np.corrcoef(z.numpy()[there(count, keep)], rowvar=False) + eps * np.eye(d)
    expected = np.linalg.slogdet(wide)[1] / d
    value = F.correlation_log_volume(z, mask(count, keep), eps)
    close(value, expected, rel=1e-9)


def test_correlation_log_volume_by_hand():
    # Uncorrelated channels: the identity, log(1 + eps). Equal ones: all ones, whose
    # eigenvalues are 2 + eps and eps.
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(F.correlation_log_volume(z, eps=0.5), math.log(1.5))
    z[:, 1] = 3 * z[:, 0] + 7
    close(F.correlation_log_volume(z, eps=0.5), (math.log(2.5) + math.log(0.5)) / 2)
    z[:, 1] = 0.1  # constant: a zero on the diagonal
    close(F.correlation_log_volume(z, eps=0.5), (math.log(1.5) + math.log(0.5)) / 2)


@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_correlation_log_volume_gradients(eps):
    def wide(z):
        corr = torch.corrcoef(z.T) + eps * torch.eye(z.shape[1])
        return torch.logdet(corr) / z.shape[1]

    z = rand(7, 4)
    assert gradcheck(lambda x: F.correlation_log_volume(x, eps=eps), (leaf(z),))
    _, (got,) = finite_gradient(lambda x: F.correlation_log_volume(x, eps=eps), z)
    _, (expected,) = finite_gradient(wide, z)
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_that_is_constant_up_to_rounding_has_no_gradient(dtype):
    z = torch.randn(6, 3, dtype=dtype)
    z[:, 1] = 0.3
    z[0, 1] = torch.nextafter(z[0, 1], torch.tensor(1.0, dtype=dtype))
    _, (gradient,) = finite_gradient(F.correlation_log_volume, z)
    assert (gradient[:, 1] == 0).all() and gradient.abs().max() < 100
    z[0, 1] += 1e-5  # a real difference counts
    _, (gradient,) = finite_gradient(F.correlation_log_volume, z)
    assert (gradient[:, 1] != 0).any()


@pytest.mark.parametrize("function", [F.spread_shortfall, F.correlation_log_volume])
@pytest.mark.parametrize("keep", [{1}, set()])
def test_statistics_of_fewer_than_two_samples_are_zero(function, keep):
    value, (gradient,) = finite_gradient(
        lambda x: function(x, mask(4, keep)), rand(4, 3)
    )
    assert value == 0 and (gradient == 0).all()
    value, _ = finite_gradient(function, rand(1, 3))
    assert value == 0
    finite_gradient(function, torch.zeros(4, 3))


# ----------------------------------------------------------------- half precision

HALVED = {
    "norm_alignment": lambda a, b, y: F.norm_alignment(a, b),
    "unit_distance": lambda a, b, y: F.unit_distance(a, b),
    "supervised_contrastive": lambda a, b, y: F.supervised_contrastive(
        {"a": F.unit_rows(a), "b": F.unit_rows(b)}, y
    ),
    "half_distance": lambda a, b, y: F.half_distance(a),
    "entropy_weights": lambda a, b, y: F.entropy_weights(
        {"a": a, "b": b}, {"a": None, "b": None}
    )["a"].sum(),
    "smoothed_entropy": lambda a, b, y: F.smoothed_entropy(a),
    "confusion_weights": lambda a, b, y: F.confusion_weights(
        {"a": a, "b": b}, {"a": y >= 0, "b": y >= 0}
    )[0]["a"],
    "mean_shift": lambda a, b, y: F.mean_shift(F.unit_rows(a))[0, 0],
    "view_contrast": lambda a, b, y: F.view_contrast(a, b),
    "negative_spectral_entropy": lambda a, b, y: F.negative_spectral_entropy(a),
    "spread_shortfall": lambda a, b, y: F.spread_shortfall(0.1 * a),
    "correlation_log_volume": lambda a, b, y: F.correlation_log_volume(a),
}


@pytest.mark.parametrize("name", HALVED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    a, b = (torch.randn(8, 6).to(dtype) for _ in range(2))
    y = torch.arange(8) % 3
    exact = HALVED[name](a.double(), b.double(), y).item()
    finite_gradient(lambda *x: HALVED[name](*x, y), a, b) if name in (
        "norm_alignment",
        "unit_distance",
        "view_contrast",
    ) else finite_gradient(lambda x: HALVED[name](x, b, y), a)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = HALVED[name](a, b, y)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=1e-4, abs=1e-6)
