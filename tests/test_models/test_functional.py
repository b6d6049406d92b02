"""Shared formulas against slow references written from their equations."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from helpers.objectives import (
    HALF,
    NAMES,
    SIZES,
    assert_float32_from_half,
    close,
    contrast_reference,
    finite_gradient,
    kept,
    kl_reference,
    leaf,
    mask,
    norm,
    present_rows,
    rand,
    softmax,
    sphere,
)
from mmaction_mbcd.models.functional import (
    gradients_of,
    halves,
    masked_cross_entropy,
    masked_kl_divergence,
    modality_pairs,
    row_norms,
    supervised_contrastive,
    unit_distance,
    unit_rows,
)


def test_pairs_in_declared_order():
    assert modality_pairs(["a", "b", "c"], "x") == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    with pytest.raises(ValueError, match=r"Frob compares.*two; got \['video'\]"):
        modality_pairs(["video"], "Frob")


def test_unit_rows_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-9]], dtype=torch.float64)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(unit_rows(x), expected, rtol=0, atol=1e-15)
    _, (gradient,) = finite_gradient(lambda v: unit_rows(v).sum(), x[:2])
    # d/dx of (x + y) / ||(x, y)|| at (3, 4): y (y - x) / 125, -x (y - x) / 125.
    expected = torch.tensor([[4 / 125, -3 / 125], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(gradient, expected, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision(dtype):
    x = torch.full((2, 400), 200.0, dtype=dtype)  # its square overflows float16
    assert row_norms(x).tolist() == [4000.0, 4000.0]
    assert unit_rows(x).dtype == torch.float32


def test_absent_samples_leave_the_means():
    logits, teacher = torch.randn(2, 6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    present = torch.tensor([True, False, True, True, False, False])
    ce = masked_cross_entropy(logits, labels, present)
    probabilities = [softmax(row) for row in logits.tolist()]
    rows = [0, 2, 3]
    expected = -sum(math.log(probabilities[i][labels[i]]) for i in rows) / 3
    assert ce.item() == pytest.approx(expected, rel=1e-12)
    kl = masked_kl_divergence(teacher, logits, present)
    assert kl.item() == pytest.approx(kl_reference(teacher[rows], logits[rows]))
    none = masked_cross_entropy(logits.requires_grad_(), labels, present & False)
    none.backward()
    assert none.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_distillation_temperature(temperature):
    teacher, student = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = temperature**2 * kl_reference(
        teacher / temperature, student / temperature
    )
    got = masked_kl_divergence(teacher, student, temperature=temperature)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def distance_reference(a, b, rows):
    total = 0.0
    for i in rows:
        na, nb = norm(a[i]), norm(b[i])
        total += norm([x / na - y / nb for x, y in zip(a[i], b[i], strict=True)])
    return total / max(len(rows), 1)


@pytest.mark.parametrize("count", SIZES)
@kept
def test_unit_distance(count, keep):
    a, b = rand(count, 5), rand(count, 5)
    expected = distance_reference(a.tolist(), b.tolist(), present_rows(count, keep))
    close(unit_distance(a, b, mask(count, keep)), expected)


def test_unit_distance_by_hand():
    # Directions at right angles are sqrt(2) apart, opposite ones 2.
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 7.0], [0.0, -0.1]], dtype=torch.float64)
    close(unit_distance(a, b), (math.sqrt(2) + 2) / 2)
    close(unit_distance(a, b, torch.tensor([True, False])), math.sqrt(2))


def test_unit_distance_gradients():
    assert gradcheck(unit_distance, (leaf(rand(4, 3)), leaf(rand(4, 3))))
    same, zero = rand(2, 3), torch.zeros(2, 3, dtype=torch.float64)
    for a, b in [(same, 2 * same), (same, zero), (zero, zero)]:
        finite_gradient(unit_distance, a, b)
    close(unit_distance(same, zero), 1.0)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("missing", [False, True])
def test_supervised_contrastive(count, modalities, missing):
    embeddings = {m: sphere(count, 6) for m in NAMES[:modalities]}
    labels = torch.arange(count) % 3
    rows = {
        m: {i for i in range(count) if not missing or (i + k) % 3}
        for k, m in enumerate(embeddings)
    }
    own = {m: {i: e[i] for i in rows[m]} for m, e in embeddings.items()}
    present = {m: mask(count, keep) for m, keep in rows.items()} if missing else None
    for taus in ((0.1, 0.07), (0.5, 0.2)):
        expected = contrast_reference(own, labels, *taus)
        close(supervised_contrastive(embeddings, labels, present, *taus), expected)


def test_supervised_contrastive_by_hand():
    # Four anchors on two orthogonal axes, labels by axis. Each has one positive at
    # similarity 1 and two others at 0: -log(e^10 / (e^10 + 2)), times 0.1 / 0.07.
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    loss = supervised_contrastive({"a": e, "b": e}, torch.tensor([0, 1]))
    close(loss, 0.1 / 0.07 * math.log1p(2 * math.exp(-10)), rel=1e-9)


def test_supervised_contrastive_has_the_published_factor():
    e, y = {m: sphere(8, 5) for m in NAMES[:2]}, torch.arange(8) % 3
    plain = supervised_contrastive(e, y, base_temperature=0.1)  # tau / tau_0 = 1
    assert supervised_contrastive(e, y) / plain == pytest.approx(1.0 / 0.7)


def test_an_anchor_without_a_positive_counts_in_the_mean():
    e = {"video": sphere(3, 4)}
    alone = supervised_contrastive(e, torch.tensor([0, 1, 2]))
    assert alone == 0
    pair = supervised_contrastive(e, torch.tensor([0, 0, 2]))
    present = {"video": torch.tensor([True, True, True])}
    s = (e["video"] @ e["video"].T / 0.1).tolist()
    terms = [
        math.log(math.exp(s[0][1]) + math.exp(s[0][2])) - s[0][1],
        math.log(math.exp(s[1][0]) + math.exp(s[1][2])) - s[1][0],
        0.0,
    ]
    close(pair, 0.1 / 0.07 * sum(terms) / 3)
    assert supervised_contrastive(e, torch.tensor([0, 0, 2]), present) == pair


def test_supervised_contrastive_gradients():
    y = torch.tensor([0, 1, 0, 2, 2])
    has = {"a": mask(5, {0, 2, 3}), "b": mask(5, {1, 2, 4})}

    def loss(a, b):
        return supervised_contrastive({"a": a, "b": b}, y, has)

    assert gradcheck(loss, (leaf(rand(5, 3)), leaf(rand(5, 3))))
    zeros = torch.zeros(5, 3, dtype=torch.float64)
    finite_gradient(loss, zeros, zeros)
    nobody = {"a": mask(5, set()), "b": mask(5, set())}
    value, gradients = finite_gradient(
        lambda a, b: supervised_contrastive({"a": a, "b": b}, y, nobody),
        rand(5, 3),
        rand(5, 3),
    )
    assert value == 0 and all((g == 0).all() for g in gradients)


def test_halves_of_an_odd_width():
    shared, specific = halves(torch.arange(5.0).unsqueeze(0))
    assert shared.tolist() == [[0, 1]] and specific.tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    def contrast(a, b, y):
        return supervised_contrastive({"a": unit_rows(a), "b": unit_rows(b)}, y)

    assert_float32_from_half(lambda a, b, y: unit_distance(a, b), dtype, inputs=2)
    assert_float32_from_half(contrast, dtype)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_a_loss(scale, create_graph):
    """d/dx of x^3 is 3 x^2, and with a graph its derivative is 6 x."""
    x, unused = leaf(rand(4)), leaf(rand(3))
    loss = (x**3).sum()
    gradient, zero = gradients_of(loss, [x, unused], scale, create_graph)
    assert torch.allclose(gradient, 3 * x**2, rtol=1e-14)
    assert torch.equal(zero, torch.zeros(3, dtype=torch.float64))
    assert gradient.requires_grad == create_graph
    if create_graph:
        (second,) = torch.autograd.grad(gradient.sum(), x, retain_graph=True)
        assert torch.allclose(second, 6 * x, rtol=1e-14)
    loss.backward()  # the graph is still there
    assert torch.equal(x.grad, 3 * x.detach() ** 2)
