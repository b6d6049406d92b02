"""Planes of weights: their middle and corners are the models themselves."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.held import held_toy, trained_toy
from mmaction_mbcd.analysis.directions import length
from mmaction_mbcd.analysis.landscape import (
    draw_landscape,
    measure_landscape,
    moving_weights,
    plane_losses,
    plane_through,
    random_plane,
    same_stems,
)
from mmaction_mbcd.analysis.trained import TrainedModel


def test_the_middle_is_the_loss_itself():
    trained = trained_toy(batchnorm=True)
    held, *_ = held_toy(trained)
    before = copy.deepcopy(trained.model.state_dict())
    plane = random_plane(trained.model, radius=0.7, points=3)
    frame = measure_landscape(trained, {"target": held}, plane)
    middle = frame[(frame["x"] == 0) & (frame["y"] == 0)]
    assert middle["loss"].item() == held.loss(trained.model)
    assert len(frame) == 9 and frame["loss"].nunique() == 9
    assert sorted(frame["x"].unique()) == [-0.7, 0, 0.7]
    assert frame["guess"].iloc[0] == pytest.approx(math.log(3))
    after = trained.model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


class Bowl(torch.nn.Module):
    """``sum of w^2`` of a two-by-two weight."""

    def __init__(self, *values):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([values[:2], values[2:]]).double())

    def forward(self):
        return float(self.w.detach().square().sum())


def test_points_of_a_plane_by_hand():
    """Through (1, 0, 0, 0), (3, 0, 0, 0) and (2, 5, 0, 0): x along w1, y along w2."""
    bowls = {"a": Bowl(1.0, 0, 0, 0), "b": Bowl(3.0, 0, 0, 0), "c": Bowl(2.0, 5, 0, 0)}
    weights = {name: {"w": bowl.w.detach()} for name, bowl in bowls.items()}
    plane = plane_through(weights, margin=0.5, points=4)
    assert plane.corners == {"a": (0, 0), "b": (2, 0), "c": (1, 5)}
    assert plane.xs.tolist() == pytest.approx(np.linspace(-1, 3, 4).tolist())
    assert plane.ys.tolist() == pytest.approx(np.linspace(-2.5, 7.5, 4).tolist())
    trained = TrainedModel(None, bowls["a"], {})
    frame = plane_losses(trained, lambda: {"all": trained.model()}, plane)
    assert np.allclose(frame["loss"], (1 + frame["x"]) ** 2 + frame["y"] ** 2)
    corners = frame[frame["corner"] != ""].set_index("corner")["loss"]
    assert corners.to_dict() == pytest.approx({"a": 1, "b": 9, "c": 29})


def test_corners_are_the_models_with_their_own_statistics():
    models = [trained_toy(batchnorm=True, frozen_stages=-1, seed=i) for i in range(3)]
    for i, each in enumerate(models):  # statistics of their own
        generator = torch.Generator().manual_seed(i)
        for name, buffer in each.model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    held, *_ = held_toy(models[0])
    weights = {str(i): moving_weights(each.model) for i, each in enumerate(models)}
    plane = plane_through(weights, points=3)
    frame = measure_landscape(models[0], {"target": held}, plane)
    corners = frame[frame["corner"] != ""].set_index("corner")["loss"]
    for i, each in enumerate(models):
        own, *_ = held_toy(each)
        assert corners[str(i)] == pytest.approx(own.loss(each.model), abs=1e-9)
    assert length(plane.u) == pytest.approx(1) == length(plane.v)
    inner = sum((plane.u[k] * plane.v[k]).sum().item() for k in plane.u)
    assert abs(inner) < 1e-12
    # Far outside, the line through two variances would fall below zero.
    far = plane.at(-50, -50)
    assert min(v.min() for k, v in far.items() if k.endswith("running_var")) == 0


def test_stems_that_differ_are_noticed():
    a, b, c = (trained_toy(frozen_stages=0, seed=s).model for s in (0, 0, 1))
    assert same_stems([a, b]) and not same_stems([a, c])
    without = [trained_toy(frozen_stages=-1, seed=s).model for s in (0, 1)]
    assert same_stems(without)


def test_stems_run_again_where_they_differ():
    a, b = (trained_toy(frozen_stages=0, seed=s) for s in (0, 1))
    held, inputs, _ = held_toy(b, counts=(8,))
    plain = copy.copy(held)
    plain.batches, plain.through_stems = [(inputs, held.batches[0][1])], False
    assert plain.loss(b.model) == held.loss(b.model)
    assert plain.loss(a.model) == held_toy(a, counts=(8,))[0].loss(a.model)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["a", "b"], "three weight vectors define a plane; got 2"),
        (["a", "b", "b2"], "lie on a line"),
        (["a", "a2", "b"], "lie on a line"),
        (["a", "b", "wide"], "of different models"),
    ],
)
def test_planes_that_do_not_exist(weights, message):
    known = dict(a=[0.0, 0], a2=[0.0, 0], b=[1.0, 1], b2=[2.0, 2], wide=[1.0, 2, 3])
    vectors = {name: {"w": torch.tensor([known[name]])} for name in weights}
    with pytest.raises(ValueError, match=message):
        plane_through(vectors)


def test_an_even_grid_has_no_middle():
    with pytest.raises(ValueError, match="choose an odd number"):
        random_plane(trained_toy().model, points=4)


def test_a_flat_plane_and_a_steep_one_are_drawn(tmp_path):
    x, y = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    for name, loss in (("flat", 0 * x + 1), ("steep", 1e4 * (x**2 + y**2))):
        frame = pd.DataFrame(
            dict(role="source", x=x.ravel(), y=y.ravel(), loss=loss.ravel(), corner="",
                 N=3, guess=math.log(3), run=name)
        )  # fmt: skip
        files = draw_landscape(frame, tmp_path / name, surface=name == "steep")
        assert pd.read_csv(files[2])["loss"].max() == loss.max()  # the data keep it
