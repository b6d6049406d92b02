"""Shapley values: their axioms, and against all orders of arrival."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.held import held_toy, trained_toy
from mmaction_mbcd.analysis.shapley import (
    coalition_accuracies,
    coalitions,
    draw_shapley,
    measure_shapley,
    shapley_values,
)

PLAYERS = ("video", "audio", "flow", "text")


def game(seed, players=PLAYERS):
    random = np.random.default_rng(seed)
    return {subset: random.normal() for subset in coalitions(players)}


def by_orders(values, players):
    """Mean gain of each player over all orders in which they may arrive."""
    gains = {p: [] for p in players}
    for order in itertools.permutations(players):
        inside = set()
        for player in order:
            before = tuple(p for p in players if p in inside)
            inside.add(player)
            after = tuple(p for p in players if p in inside)
            gains[player].append(values[after] - values[before])
    return {p: np.mean(found) for p, found in gains.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_against_all_orders(count):
    players = PLAYERS[:count]
    values = game(count, players)
    found = shapley_values(values, players)
    assert found == pytest.approx(by_orders(values, players), abs=1e-12)
    # Efficiency.
    total = values[players] - values[()]
    assert sum(found.values()) == pytest.approx(total, abs=1e-12)


def test_axioms():
    one, two = game(1), game(2)
    both = {s: 2 * one[s] + two[s] for s in one}
    found = [shapley_values(g, PLAYERS) for g in (one, two, both)]
    for p in PLAYERS:  # additivity
        assert found[2][p] == pytest.approx(2 * found[0][p] + found[1][p])
    # Symmetry: only how many of audio and flow are there counts.
    sizes = {
        s: 3.0 * len({"audio", "flow"} & set(s)) ** 2 + ("video" in s) for s in one
    }
    symmetric = shapley_values(sizes, PLAYERS)
    assert symmetric["audio"] == pytest.approx(6) == symmetric["flow"]
    assert symmetric["video"] == pytest.approx(1)
    assert symmetric["text"] == pytest.approx(0)  # a null player


def test_a_missing_subset_is_named():
    values = game(0)
    del values["video", "flow"]
    with pytest.raises(ValueError, match=r"1 subsets, such as \('video', 'flow'\)"):
        shapley_values(values, PLAYERS)


def masked_prediction(model, inputs, samples, subset):
    """The public way: zeros, and data samples that say so."""
    for sample in samples:
        present = {m: has and m in subset for m, has in sample.present.items()}
        sample.set_metainfo(dict(present=present))
    inputs = {m: x * (m in subset) for m, x in inputs.items()}
    with torch.no_grad():
        return model(inputs, samples).argmax(1)


def test_values_on_clips(tmp_path):
    names = ("video", "audio", "flow")
    trained = trained_toy(names, batchnorm=True)
    absent = {"audio": [1, 6], "flow": [1]}
    held, *_ = held_toy(trained, (5, 3), absent)
    found = coalition_accuracies(trained, held)
    assert set(found) == set(coalitions(names)) and (found[()] == 1 / 3).all()
    for subset in coalitions(names)[1:]:
        _, inputs, samples = held_toy(trained, (5, 3), absent)
        right = masked_prediction(trained.model, inputs, samples, subset)
        right = right.numpy() == held.labels
        for row in range(8):
            empty = all(row in absent.get(m, ()) for m in subset)
            assert found[subset][row] == (1 / 3 if empty else right[row])
    frame = measure_shapley(trained, held, resamples=200)
    shares = frame[frame["quantity"] == "shapley"].set_index("modalities")
    total = found[names].mean() - 1 / 3
    assert shares["value"].sum() == pytest.approx(total, abs=1e-12)
    assert (shares["low"] <= shares["value"]).all()
    assert (shares["value"] <= shares["high"]).all()
    assert (frame["N"] == 8).all() and len(frame) == 3 + 8
    files = draw_shapley(frame.assign(run="A"), tmp_path / "s")
    again = pd.read_csv(files[2], keep_default_na=False)
    assert again["value"].tolist() == pytest.approx(frame["value"].tolist())


def test_the_interval_is_that_of_a_mean():
    """Against the normal approximation, on many clips of one modality."""
    trained = trained_toy(("video", "audio"))
    held, *_ = held_toy(trained, (200, 200))
    frame = measure_shapley(trained, held, resamples=1000).set_index("modalities")
    correct = coalition_accuracies(trained, held)
    own = 0.5 * (correct[("audio",)] - correct[()])
    own += 0.5 * (correct["video", "audio"] - correct[("video",)])
    row = frame[frame["quantity"] == "shapley"].loc["audio"]
    half = 1.96 * own.std(ddof=1) / 20
    assert row["value"] == pytest.approx(own.mean(), abs=1e-12)
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)
