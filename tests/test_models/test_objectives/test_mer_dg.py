"""MER-DG: spread and correlation volume."""

import math

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from torch.autograd import gradcheck

from helpers.objectives import (
    HALF,
    assert_float32_from_half,
    build,
    close,
    finite_gradient,
    leaf,
    mask,
    outputs_of,
    present_rows,
    rand,
    rows_of,
    step,
    sweep,
)
from mmaction_mbcd.models.objectives.mer_dg import (
    correlation_log_volume,
    spread_shortfall,
)


@pytest.mark.parametrize("count", [2, 3, 7, 30])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("keep", [None, {0, 1, 2}])
def test_spread_shortfall(count, gamma, keep):
    z, rows = rand(count, 5), present_rows(count, keep)
    std = z.numpy()[rows].std(axis=0, ddof=1)
    value = spread_shortfall(z, mask(count, keep), gamma)
    close(value, sum(max(0.0, gamma - s) for s in std) / 5)


def test_spread_shortfall_by_hand():
    # Channels (0, 1) and (0, 4): std 1 / sqrt(2) and 4 / sqrt(2).
    z = torch.tensor([[0.0, 0.0], [1.0, 4.0]], dtype=torch.float64)
    close(spread_shortfall(z), (1 - 1 / math.sqrt(2)) / 2)
    assert gradcheck(spread_shortfall, (leaf(0.3 * rand(4, 3)),))
    value, (gradient,) = finite_gradient(spread_shortfall, torch.ones(4, 3))
    assert value == 1 and (gradient == 0).all()


@pytest.mark.parametrize(("count", "d"), [(2, 3), (3, 8), (9, 4), (30, 6)])
@pytest.mark.parametrize("eps", [1e-4, 0.1])
@pytest.mark.parametrize("keep", [None, {0, 1, 2}])
def test_correlation_log_volume(count, d, eps, keep):
    z = rand(count, d) * torch.logspace(-2, 2, d, dtype=torch.float64)
    wide = np.corrcoef(
        z.numpy()[present_rows(count, keep)], rowvar=False
    ) + eps * np.eye(d)
    expected = np.linalg.slogdet(wide)[1] / d
    value = correlation_log_volume(z, mask(count, keep), eps)
    close(value, expected, rel=1e-9)


def test_correlation_log_volume_by_hand():
    # Uncorrelated channels: the identity, log(1 + eps). Equal ones: all ones, whose
    # eigenvalues are 2 + eps and eps.
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    close(correlation_log_volume(z, eps=0.5), math.log(1.5))
    z[:, 1] = 3 * z[:, 0] + 7
    close(correlation_log_volume(z, eps=0.5), (math.log(2.5) + math.log(0.5)) / 2)
    z[:, 1] = 0.1  # constant: a zero on the diagonal
    close(correlation_log_volume(z, eps=0.5), (math.log(1.5) + math.log(0.5)) / 2)


@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_correlation_log_volume_gradients(eps):
    def wide(z):
        corr = torch.corrcoef(z.T) + eps * torch.eye(z.shape[1])
        return torch.logdet(corr) / z.shape[1]

    z = rand(7, 4)
    assert gradcheck(lambda x: correlation_log_volume(x, eps=eps), (leaf(z),))
    _, (got,) = finite_gradient(lambda x: correlation_log_volume(x, eps=eps), z)
    _, (expected,) = finite_gradient(wide, z)
    assert torch.allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_channel_that_is_constant_up_to_rounding_has_no_gradient(dtype):
    z = torch.randn(6, 3, dtype=dtype)
    z[:, 1] = 0.3
    z[0, 1] = torch.nextafter(z[0, 1], torch.tensor(1.0, dtype=dtype))
    _, (gradient,) = finite_gradient(correlation_log_volume, z)
    assert (gradient[:, 1] == 0).all() and gradient.abs().max() < 100
    z[0, 1] += 1e-5  # a real difference counts
    _, (gradient,) = finite_gradient(correlation_log_volume, z)
    assert (gradient[:, 1] != 0).any()


@pytest.mark.parametrize("function", [spread_shortfall, correlation_log_volume])
@pytest.mark.parametrize("keep", [{1}, set()])
def test_statistics_of_fewer_than_two_samples_are_zero(function, keep):
    value, (gradient,) = finite_gradient(
        lambda x: function(x, mask(4, keep)), rand(4, 3)
    )
    assert value == 0 and (gradient == 0).all()
    value, _ = finite_gradient(function, rand(1, 3))
    assert value == 0
    finite_gradient(function, torch.zeros(4, 3))


@sweep
@pytest.mark.parametrize("weights", [(3.0, 1.0, 1.0), (0.5, 2.0, 0.1)])
def test_maximum_entropy(names, count, absent, weights):
    weight, a_1, a_2 = weights
    objective = build(
        "MaximumEntropyRegularizer",
        names,
        weight=weight,
        spread_weight=a_1,
        volume_weight=a_2,
        gamma=1.5,
        eps=0.01,
    )
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    spread = volume = 0.0
    for m, z in outputs.features.items():
        z = z[rows_of(outputs, m)]
        spread += (
            sum(max(0.0, 1.5 - z[:, c].std().item()) for c in range(z.shape[1]))
            / z.shape[1]
        )
        wide = torch.corrcoef(z.T) + 0.01 * torch.eye(z.shape[1]).double()
        volume += torch.logdet(wide).item() / z.shape[1]
    close(losses["loss_spread"], weight * a_1 * spread)
    close(losses["loss_volume"], -weight * a_2 * volume)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    assert_float32_from_half(lambda a, b, y: spread_shortfall(0.1 * a), dtype)
    assert_float32_from_half(lambda a, b, y: correlation_log_volume(a), dtype)


def test_eps_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        MODELS.build(dict(type="MaximumEntropyRegularizer", eps=0.0))
