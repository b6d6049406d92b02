"""Perturbed weights: closed forms, invariances, and that everything is put back."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from helpers.held import held_toy, trained_toy
from mmaction_mbcd.analysis import directions
from mmaction_mbcd.analysis.flatness import (
    draw_flatness,
    flatness_summary,
    loss_increases,
    measure_flatness,
)
from mmaction_mbcd.analysis.trained import TrainedModel


class Quadratic(nn.Module):
    """``0.5 x' H x + g' x`` of the entries of two parameters."""

    def __init__(self, hessian, gradient):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.a = nn.Parameter(torch.randn(3, 4, generator=generator).double())
        self.b = nn.Parameter(torch.randn(5, generator=generator).double())
        self.hessian, self.gradient = hessian, gradient

    def forward(self):
        x = torch.cat([self.a.flatten(), self.b]).detach()
        return float(0.5 * x @ self.hessian @ x + self.gradient @ x)


def quadratic(hessian=None):
    generator = torch.Generator().manual_seed(1)
    if hessian is None:
        root = torch.randn(17, 17, generator=generator).double()
        hessian = root @ root.T
    gradient = 10 * torch.randn(17, generator=generator).double()
    return TrainedModel(None, Quadratic(hessian, gradient), {})


def increases(trained, gammas, count, **options):
    frame = loss_increases(
        trained, lambda: {"all": trained.model()}, gammas, count, **options
    )
    table = frame.groupby(["gamma", "direction"])["increase"].mean().unstack(0)
    return table.drop(columns=0.0)


def test_a_quadratic_rises_by_its_trace():
    """E over the sphere of x'Hx / 2 is gamma^2 tr(H) / (2 d); the slope cancels."""
    trained = quadratic()
    table = increases(trained, [0.5, 2.0], 200)
    for gamma, values in table.items():
        expected = gamma**2 * float(trained.model.hessian.trace()) / (2 * 17)
        error = values.std() / np.sqrt(len(values))
        assert error < 0.05 * expected
        assert abs(values.mean() - expected) < 3 * error


def test_every_step_is_gamma_long():
    table = increases(quadratic(torch.eye(17).double()), [0.1, 3.0], 20)
    assert np.allclose(table[0.1], 0.005, atol=1e-12)
    assert np.allclose(table[3.0], 4.5, atol=1e-10)


def test_directions_follow_from_seed_number_and_name_alone():
    small = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
    large = {"z": torch.zeros(9), **small}
    one = directions.gaussian_direction(small, 0, 2)
    other = directions.gaussian_direction(large, 0, 2)
    assert all(torch.equal(one[k], other[k]) for k in small)
    for seed, number in ((1, 2), (0, 3)):
        changed = directions.gaussian_direction(small, seed, number)
        assert not torch.equal(one["a"], changed["a"])
    many = directions.gaussian_direction({"x": torch.zeros(100_000)}, 0, 0)["x"]
    assert stats.kstest(many.numpy(), "norm").pvalue > 0.01


def test_a_direction_is_normalised_over_all_parameters():
    unit = directions.unit_direction({"a": torch.tensor([[3.0]]), "b": torch.ones(2)})
    assert unit["a"].item() == pytest.approx(3 / 11**0.5)
    assert directions.length(unit) == pytest.approx(1)


def test_filter_normalisation_by_hand():
    weights = {
        "linear": torch.tensor([[3.0, 4.0], [0.0, 2.0]]),  # norms 5 and 2
        "conv": torch.tensor([2.0, 0, 0, 0, 1, 1, 1, 1]).view(2, 1, 2, 2),  # 2 and 2
        "bias": torch.tensor([7.0, 8.0]),
    }
    direction = {
        "linear": torch.tensor([[1.0, 0.0], [0.0, -5.0]]),
        "conv": torch.tensor([0, 3.0, 0, 4, 1, 0, 0, 0]).view(2, 1, 2, 2),  # 5 and 1
        "bias": torch.tensor([1.0, 1.0]),
    }
    found = directions.filter_normalised(direction, weights)
    assert found["linear"].tolist() == [[5, 0], [0, -2]]
    expected = [0, 1.2, 0, 1.6, 2, 0, 0, 0]
    assert found["conv"].flatten().tolist() == pytest.approx(expected)
    assert found["bias"].tolist() == [0, 0]


class ScaleFree(nn.Module):
    """A loss that does not depend on the length of a filter."""

    def __init__(self, scale):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(4, 6, generator=generator).double()
        self.rows = nn.Parameter(rows * scale)

    def forward(self):
        return float(F.normalize(self.rows.detach(), dim=1).sum(dim=0).square().sum())


def test_filter_normalisation_takes_scales_out():
    scales = torch.tensor([[1.0], [10.0], [0.1], [3.0]]).double()
    plain, scaled = (TrainedModel(None, ScaleFree(s), {}) for s in (1.0, scales))
    assert plain.model() == pytest.approx(scaled.model())
    by_filter = [increases(t, [0.3], 4, by_filter=True) for t in (plain, scaled)]
    assert np.allclose(*by_filter, atol=1e-12) and by_filter[0].abs().min().min() > 1e-3
    on_sphere = [increases(t, [0.3], 4) for t in (plain, scaled)]
    assert not np.allclose(*on_sphere, rtol=0.1)


def test_weights_and_buffers_are_put_back_to_the_bit():
    trained = trained_toy(batchnorm=True)
    before = copy.deepcopy(trained.model.state_dict())
    name = "encoders.video.backbone.layer2.1.running_mean"
    other = {
        k: v + 1 for k, v in directions.perturbed_parameters(trained.model).items()
    }
    with pytest.raises(RuntimeError, match="within"):
        with trained.moved(other | {name: before[name] + 5}):
            state = trained.model.state_dict()
            assert torch.equal(state[name], before[name] + 5)
            assert all(torch.equal(state[k], before[k] + 1) for k in other)
            raise RuntimeError("within")
    after = trained.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_what_is_perturbed_is_what_the_fused_loss_depends_on():
    trained = trained_toy(frozen_stages=0)
    held, *_ = held_toy(trained)
    moving = directions.perturbed_parameters(trained.model)
    loss = held.loss(trained.model)
    for name, value in dict(trained.model.named_parameters()).items():
        # Not by a constant: normalised features sum to zero.
        with trained.moved({name: value + torch.randn_like(value)}):
            changed = held.loss(trained.model) != loss
        assert changed == (name in moving), name
    assert not any("conv1" in name for name in moving)  # the frozen stems


def test_the_loss_is_the_mean_over_clips_and_not_over_batches():
    trained = trained_toy()
    held, inputs, samples = held_toy(trained, (5, 3), absent={"audio": [1, 6]})
    with torch.no_grad():
        logits = trained.model(inputs, samples)
    labels = torch.cat([s.gt_label for s in samples])
    expected = F.cross_entropy(logits, labels).item()
    assert held.loss(trained.model) == pytest.approx(expected, abs=1e-12)


def test_measured_and_summarised(tmp_path):
    trained = trained_toy(batchnorm=True)
    held, *_ = held_toy(trained)
    before = copy.deepcopy(trained.model.state_dict())
    frame = measure_flatness(trained, {"target": held}, [0.5, 1], directions=3)
    after = trained.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert (frame["N"] == 8).all() and len(frame) == 3 * (1 + 2 * 2)
    assert not trained.model.training
    summary = flatness_summary(frame.assign(run="A")).set_index("gamma")
    assert summary.loc[0.0, ["mean", "low", "high"]].tolist() == [0, 0, 0]
    own = frame[frame["gamma"] == 1].pivot(
        index="direction", columns="sign", values="increase"
    )
    means = (own[1] + own[-1]) / 2
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    row = summary.loc[1.0]
    assert [row["mean"], row["low"], row["high"]] == pytest.approx(
        [means.mean(), low, high]
    )
    files = draw_flatness(frame.assign(run="A"), tmp_path / "f")
    assert pd.read_csv(files[2])["loss"].tolist() == pytest.approx(list(frame["loss"]))
