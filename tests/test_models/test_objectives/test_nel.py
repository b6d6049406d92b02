"""NEL: mean shift, contrast of views and spectral entropy."""

import math

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from torch.autograd import gradcheck

from helpers.objectives import (
    CLASSES,
    HALF,
    NAMES,
    SIZES,
    WIDTHS,
    assert_finite_differences,
    assert_float32_from_half,
    assert_published,
    build,
    close,
    contrast_reference,
    finite_gradient,
    kept,
    leaf,
    mask,
    norm,
    outputs_of,
    present_rows,
    projected,
    rand,
    rows_of,
    softmax,
    sphere,
    step,
    unit,
    valid_rows,
)
from mmaction_mbcd.models.functional import unit_rows
from mmaction_mbcd.models.objectives.nel import (
    mean_shift,
    negative_spectral_entropy,
    view_contrast,
)


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
    got = mean_shift(e, mask(count, keep), k)
    for i, expected in shift_reference(e, present_rows(count, keep), k).items():
        assert got[i].tolist() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    assert torch.isfinite(got).all()


def test_mean_shift_by_hand():
    # The nearest to (1, 0) is (.8, .6): u(.5 (1, 0) + .5 (.8, .6)) = u(.9, .3).
    e = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]], dtype=torch.float64)
    got = mean_shift(e, neighbours=1)[0]
    assert got.tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])
    one = mean_shift(e[:1])
    assert one.tolist() == [[1.0, 0.0]]


def test_mean_shift_drops_itself_by_position():
    # Two equal rows: each is the other's nearest, not its own.
    e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    got = mean_shift(e, neighbours=1)
    assert got[:2].tolist() == [[1.0, 0.0]] * 2


def test_mean_shift_gradients():
    e = sphere(6, 3)
    has = mask(6, {0, 2, 3, 5})
    assert gradcheck(lambda x: mean_shift(x, has, 2)[has], (leaf(e),))
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    finite_gradient(lambda x: mean_shift(x).sum(), zeros)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("temperature", [0.25, 1.0])
@kept
def test_view_contrast(count, temperature, keep):
    first, second = rand(count, 4), rand(count, 4)
    rows = present_rows(count, keep)
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
    value = view_contrast(first, second, mask(count, keep), temperature)
    close(value, total / max(len(rows), 1))


def test_view_contrast_by_hand_and_one_direction():
    # First views (1,0), (0,1); second views (1,0), (1,0): at tau = 1/4 the scores are
    # (4, 4) and (0, 0), so ln 2 each. In the other direction: (4, 0) twice, of which
    # one is right: (log(1 + e^-4) + log(1 + e^4)) / 2.
    first = torch.eye(2, dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    close(view_contrast(first, second), math.log(2))
    expected = (math.log1p(math.exp(-4)) + math.log1p(math.exp(4))) / 2
    close(view_contrast(second, first), expected)


def test_view_contrast_gradients():
    has = mask(4, {0, 1, 3})
    inputs = (leaf(rand(4, 3)), leaf(rand(4, 3)))
    assert gradcheck(lambda a, b: view_contrast(a, b, has), inputs)
    finite_gradient(view_contrast, torch.zeros(3, 2), torch.zeros(3, 2))
    finite_gradient(
        lambda a, b: view_contrast(a, b, mask(3, set())), rand(3, 2), rand(3, 2)
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
    for route in (negative_spectral_entropy, wide_spectral_entropy):
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
    close(negative_spectral_entropy(z), expected, rel=1e-8)
    # Four equal directions: -log 4; one direction: 0.
    close(negative_spectral_entropy(2 * torch.eye(4).double()), -math.log(4), rel=1e-8)
    assert abs(negative_spectral_entropy(torch.ones(4, 3).double())) < 1e-9
    assert negative_spectral_entropy(torch.zeros(3, 2)) == 0


@pytest.mark.parametrize(("small", "kept"), [(1.5e-6, True), (0.7e-6, False)])
def test_spectral_entropy_cuts_eigenvalues_off(small, kept):
    # Eigenvalues 1 and ``small`` of the two present rows, over N = 2, not 4.
    z = torch.zeros(4, 3, dtype=torch.float64)
    z[0, 0], z[2, 1] = math.sqrt(2), math.sqrt(2 * small)
    share = small / (1 + small)
    expected = share * math.log(share) + (1 - share) * math.log(1 - share)
    value = negative_spectral_entropy(z, mask(4, {0, 2})).item()
    assert value == pytest.approx(kept * expected, rel=1e-3, abs=2e-10)


def test_spectral_entropy_admits_no_noise_in_float32():
    # Rank 2 and a largest eigenvalue of 1e4: float32's rounding is 1e-3, a thousand
    # cut-offs, and would let all 16 through.
    z = (100 * torch.randn(16, 2) @ torch.randn(2, 50)).float()
    exact = wide_spectral_entropy(z.double()).item()
    assert negative_spectral_entropy(z).item() == pytest.approx(exact, rel=1e-6)


def test_spectral_entropy_of_some_rows():
    z, has = rand(6, 4), mask(6, {0, 1, 4})
    close(negative_spectral_entropy(z, has), wide_spectral_entropy(z[has]).item())
    assert gradcheck(lambda x: negative_spectral_entropy(x, has), (leaf(z),))
    value, _ = finite_gradient(lambda x: negative_spectral_entropy(x, has & False), z)
    assert value == 0
    finite_gradient(negative_spectral_entropy, torch.zeros(4, 3))
    finite_gradient(negative_spectral_entropy, torch.ones(4, 3))
    # Equal eigenvalues, where single eigenvectors are not defined.
    _, (gradient,) = finite_gradient(negative_spectral_entropy, torch.eye(3).double())
    assert gradient.abs().max() < 1e-8  # the most even spectrum


def nearest_mean(e, k=8):
    """``{row: vector}`` shifted, by sorting."""
    out = {}
    for i, own in e.items():
        others = sorted((j for j in e if j != i), key=lambda j: -(own @ e[j]).item())[
            :k
        ]
        out[i] = unit(0.5 * own + 0.5 * sum(e[j] for j in others) / len(others))
    return out


@pytest.mark.parametrize(
    ("names", "clips", "absent"),
    [
        (NAMES[:2], 4, None),
        (NAMES[:3], 6, None),
        (NAMES[:4], 3, None),
        (NAMES[:3], 4, {"audio": {1, 5}, "flow": {0, 1, 4, 5}}),
        (NAMES[:2], 4, {"audio": {1, 5, 2}, "video": {1, 5}}),  # clip 1 has nothing
    ],
)
@pytest.mark.parametrize("weights", [(0.5, 0.7, 0.3, 1 / 16), (1.0, 0.2, 2.0, 0.5)])
def test_nonpolarized(names, clips, absent, weights):
    half, unc, con, nee = weights
    objective = build(
        "NonpolarizedEmbedding",
        names,
        weight=half,
        unc_weight=unc,
        contrast_weight=con,
        nee_weight=nee,
        neighbours=3,
    )
    outputs = outputs_of(names, 2 * clips, absent, views=2)
    outputs.labels = torch.arange(clips).repeat(2) % CLASSES
    if outputs.valid is not None:  # what rows that are not valid hold does not matter
        outputs.fused_features = outputs.fused_features + 5.0 * (
            ~outputs.valid.unsqueeze(1)
        )
    losses = step(objective, outputs)
    embeddings = {
        m: projected(objective, m, z[:, : WIDTHS[m] // 2], rows_of(outputs, m))
        for m, z in outputs.features.items()
    }
    close(
        losses["loss_contrast"],
        half * con * contrast_reference(embeddings, outputs.labels),
    )

    shifted = {m: nearest_mean(e, 3) for m, e in embeddings.items()}
    joined, zero = {}, torch.zeros(5, dtype=torch.float64)
    for i in range(2 * clips):
        parts = [shifted[m].get(i) for m in names]
        if any(part is not None for part in parts):
            joined[i] = unit(torch.cat([zero if p is None else p for p in parts]))
    whole = [i for i in range(clips) if i in joined and i + clips in joined]
    terms = []
    for place, i in enumerate(whole):
        scores = torch.stack([joined[i] @ joined[j + clips] / 0.25 for j in whole])
        terms.append(-scores.log_softmax(0)[place].item())
    close(losses["loss_unc"], half * unc * sum(terms) / len(terms))

    z, rows = outputs.fused_features, valid_rows(outputs)
    lam = torch.linalg.eigvalsh(z[rows].T @ z[rows] / len(rows))
    lam = lam[lam > 1e-6] / lam[lam > 1e-6].sum()
    close(losses["loss_nee"], half * nee * (lam * (lam + 1e-10).log()).sum())


def test_nonpolarized_needs_two_views():
    objective = build("NonpolarizedEmbedding", NAMES[:2])
    with pytest.raises(ValueError, match=r"batch has 1: set .*dataset\.views=2"):
        objective(outputs_of(NAMES[:2]))


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    for function, inputs in (
        (lambda a, b, y: mean_shift(unit_rows(a))[0, 0], 1),
        (lambda a, b, y: view_contrast(a, b), 2),
        (lambda a, b, y: negative_spectral_entropy(a), 1),
    ):
        assert_float32_from_half(function, dtype, inputs)


def test_a_feature_needs_a_shared_half():
    with pytest.raises(ValueError, match=r"\['v'\] have 1"):
        MODELS.build(dict(type="NonpolarizedEmbedding", channels=dict(v=1)))


def test_gradients_of_the_losses():
    assert_finite_differences("NonpolarizedEmbedding", "loss_unc", "loss_nee")


def test_published_coefficients():
    assert_published(
        "nel",
        True,
        ClassificationObjective=dict(weight=0.5),
        NonpolarizedEmbedding=dict(
            weight=0.5, unc_weight=0.7, contrast_weight=0.3, nee_weight=0.0625
        ),
    )
