"""MBCD's equations 2, 3 and 4 against slow references written from the paper."""

import itertools
import math

import pytest
import torch

from helpers.objectives import (
    NAMES,
    SHAPES,
    softmax,
)
from mmaction_mbcd.models.necks.amd import (
    draw_keep_mask,
    dropout_probability,
    modality_confidence,
    relative_learning_speed,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_confidence_sums_the_largest_probabilities(shape):
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    expected = sum(max(row) for row in [softmax(row) for row in logits.tolist()])
    assert modality_confidence(logits).item() == pytest.approx(expected, rel=1e-12)


def test_confidence_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4); softmax(0, 0) = (1/2, 1/2).
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], requires_grad=True)
    s = modality_confidence(logits)
    assert s.item() == pytest.approx(1.25)
    assert not s.requires_grad
    only_first = modality_confidence(logits, torch.tensor([True, False]))
    assert only_first.item() == pytest.approx(0.75)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_relative_learning_speed(count, seed):
    torch.manual_seed(seed)
    s = {m: torch.rand((), dtype=torch.float64) + 0.1 for m in NAMES[:count]}
    r = relative_learning_speed(s)
    assert list(r) == list(s)
    for k in s:
        others = [s[k].item() / s[j].item() for j in s if j != k]
        assert r[k].item() == pytest.approx(sum(others) / (count - 1), rel=1e-12)


def test_relative_learning_speed_by_hand():
    # r_v = (6/3 + 6/2) / 2 = 2.5; r_a = (3/6 + 3/2) / 2 = 1; r_f = (2/6 + 2/3) / 2.
    s = {"video": torch.tensor(6.0), "audio": torch.tensor(3.0)}
    s["flow"] = torch.tensor(2.0)
    r = relative_learning_speed(s)
    assert [round(float(v), 6) for v in r.values()] == [2.5, 1.0, 0.5]


def test_relative_learning_speed_refuses_one_modality():
    with pytest.raises(ValueError, match=r"at least two; got \['video'\]"):
        relative_learning_speed({"video": torch.tensor(1.0)})


@pytest.mark.parametrize("r", [0.2, 0.999, 1.0, 1.5, 2.0, 7.0])
def test_dropout_probability(r):
    expected = math.tanh(max(r - 1, 0))
    p = dropout_probability(torch.tensor(r, dtype=torch.float64))
    assert p.item() == pytest.approx(expected, abs=1e-15)
    if r == 2.0:  # tanh(1) by hand
        assert p.item() == pytest.approx(0.76159415595)


def enumerate_keep(p, present):
    """P(kept set), by listing every outcome and conditioning on "not none kept"."""
    outcomes = {}
    for kept in itertools.product([False, True], repeat=len(p)):
        if any(k and not has for k, has in zip(kept, present, strict=True)):
            continue
        probability = 1.0
        for k, has, drop in zip(kept, present, p, strict=True):
            if has:
                probability *= 1 - drop if k else drop
        if any(kept):
            outcomes[kept] = probability
    norm = sum(outcomes.values())
    return {kept: v / norm for kept, v in outcomes.items()}


@pytest.mark.parametrize(
    ("p", "present"),
    [
        ([0.5, 0.5], [True, True]),
        ([0.7, 0.0, 0.3], [True, True, True]),
        ([0.7, 0.2, 0.3], [True, False, True]),
        ([0.9, 0.8, 0.7, 0.6], [True, True, True, True]),
        ([0.76, 0.0], [True, False]),
    ],
)
def test_keep_mask_has_the_redrawn_distribution(p, present):
    """Integrates over a fine grid of uniforms instead of sampling."""
    points = 12 if len(p) == 4 else 60
    grid = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    uniforms = torch.cartesian_prod(*[grid] * len(p))
    keep, probability = draw_keep_mask(
        [torch.tensor(v, dtype=torch.float64) for v in p],
        [torch.full((len(uniforms),), has) for has in present],
        uniforms,
    )
    expected = enumerate_keep(p, present)
    for kept in itertools.product([False, True], repeat=len(p)):
        share = (keep == torch.tensor(kept)).all(1).double().mean().item()
        # Each threshold is off by at most half a grid cell.
        tolerance = len(p) * 0.5 / points
        assert share == pytest.approx(expected.get(kept, 0.0), abs=tolerance)
    assert keep.any(1).all()
    for k in range(len(p)):
        kept = sum(v for outcome, v in expected.items() if outcome[k])
        assert probability[0, k].item() == pytest.approx(kept, abs=2e-6)


def test_keep_mask_keeps_one_even_if_all_are_certain_to_go():
    ones = [torch.tensor(1.0)] * 2
    present = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
    keep, _ = draw_keep_mask(ones, present, torch.rand(3, 2))
    assert keep.sum(1).tolist() == [1, 1, 0]
    assert keep[1].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_are_computed_in_float32_at_least(dtype):
    logits = torch.randn(64, 10)
    half = modality_confidence(logits.to(dtype))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(
        modality_confidence(logits.to(dtype).float()).item(), rel=1e-6
    )
