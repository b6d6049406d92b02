"""RNA-Net: relative norm alignment."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as TF

from helpers.objectives import (
    HALF,
    NAMES,
    SIZES,
    assert_float32_from_half,
    assert_published,
    build,
    close,
    finite_gradient,
    kept,
    leaf,
    mask,
    norm,
    outputs_of,
    present_rows,
    rand,
    rows_of,
    step,
    sweep,
)
from mmaction_mbcd.models.functional import modality_pairs
from mmaction_mbcd.models.objectives.rna_net import directed_pairs, norm_alignment


def alignment_reference(p, q, rows):
    if not rows:
        return 0.0
    n_p = sum(norm(p[i]) for i in rows) / len(rows)
    n_q = sum(norm(q[i]) for i in rows) / len(rows)
    return (n_p / n_q - 1) ** 2


@pytest.mark.parametrize("count", SIZES)
@kept
def test_norm_alignment(count, keep):
    p, q = rand(count, 5), 3 * rand(count, 4)
    expected = alignment_reference(p.tolist(), q.tolist(), present_rows(count, keep))
    close(norm_alignment(p, q, mask(count, keep)), expected)


def test_norm_alignment_by_hand_and_not_symmetric():
    # Norms 5 and 1, mean 3; norms 2 and 2, mean 2: (3/2 - 1)^2 and (2/3 - 1)^2.
    p = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    close(norm_alignment(p, q), 0.25)
    close(norm_alignment(q, p), 1 / 9)
    assert gradcheck(norm_alignment, (leaf(p), leaf(q)))


def test_norm_alignment_of_zeros():
    p, q = rand(3, 4), torch.zeros(3, 2, dtype=torch.float64)
    value, gradients = finite_gradient(norm_alignment, p, q)
    assert value == 0 and all((g == 0).all() for g in gradients)
    value, _ = finite_gradient(norm_alignment, q, p)
    assert value == 1  # (0 / n - 1)^2
    q[0] = 1.0  # one row with a norm is enough
    close(norm_alignment(p, q), alignment_reference(p.tolist(), q.tolist(), range(3)))


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
    pairs = directed_pairs(modality_pairs(names, "x"), denominator)
    assert ["".join(pair) for pair in pairs] == expected


@sweep
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_norm_alignment_loss(names, count, absent, weight):
    objective = build("NormAlignmentLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    terms = []
    for p, q in itertools.combinations(names, 2):
        if p == "audio":
            p, q = q, p
        rows = rows_of(outputs, p, q)
        n_p, n_q = (
            sum(outputs.features[m][i].norm() for i in rows) / len(rows) for m in (p, q)
        )
        terms.append((n_p / n_q - 1) ** 2)
    close(losses["loss_norm"], weight * sum(terms) / len(terms))
    for m in names:
        rows = rows_of(outputs, m)
        mean = sum(outputs.features[m][i].norm() for i in rows) / len(rows)
        close(losses[f"norm/{m}"], mean)
        assert not losses[f"norm/{m}"].requires_grad


def test_norm_alignment_reads_features_before_layernorm():
    outputs = outputs_of(NAMES[:2])
    expected = step(build("NormAlignmentLoss", NAMES[:2]), outputs)["loss_norm"]
    outputs.features = {
        m: TF.layer_norm(z, z.shape[1:]) for m, z in outputs.features.items()
    }
    assert step(build("NormAlignmentLoss", NAMES[:2]), outputs)["loss_norm"] == expected


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    assert_float32_from_half(lambda a, b, y: norm_alignment(a, b), dtype, inputs=2)


def test_published_coefficients():
    assert_published(
        "rna_net", True, NormAlignmentLoss=dict(weight=1.0, denominator="audio")
    )
