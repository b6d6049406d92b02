"""Embeddings: which features, the same map twice, and the numbers beside it."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.held import held_toy, trained_toy
from mmaction_mbcd.analysis.embeddings import (
    concatenated_embeddings,
    draw_embeddings,
    embedding_scores,
    measure_embeddings,
    neighbours_agree,
    tsne,
)


def clusters(count=30, spread=0.1, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = 3 * np.eye(3, 5)
    return centres[labels] + spread * random.normal(size=(count, 5)), labels


def test_the_embeddings_are_what_the_fused_head_gets():
    trained = trained_toy(("video", "audio", "flow"))
    held, inputs, samples = held_toy(trained, (5, 3), absent={"audio": [2]})
    seen = []
    handle = trained.model.fused_head.register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    with torch.no_grad():
        trained.model(inputs, samples)
    handle.remove()
    found = concatenated_embeddings(trained, held)
    assert found.shape == (8, 4 + 5 + 6)
    assert np.allclose(found, seen[0].numpy(), atol=1e-12)
    assert (found[2, 4:9] == 0).all()  # no sound


def test_the_map_is_the_same_twice_and_another_for_another_seed():
    features, labels = clusters()
    one, two = tsne(features, seed=0), tsne(features, seed=0)
    assert np.array_equal(one, two) and one.shape == (30, 2)
    # Clusters that are far apart stay together in the map.
    assert neighbours_agree(one, labels, 3) == 1
    with pytest.raises(ValueError, match="at least four clips; got 3"):
        tsne(features[:3])


@pytest.mark.parametrize("neighbours", [1, 3, 4])
def test_nearest_neighbours_against_brute_force(neighbours):
    features, labels = clusters(spread=2.0, seed=1)
    right = 0
    for i in range(30):
        distances = [
            (np.linalg.norm(features[i] - features[j]), j) for j in range(30) if j != i
        ]
        votes = [labels[j] for _, j in sorted(distances)[:neighbours]]
        right += max(sorted(set(votes)), key=votes.count) == labels[i]
    assert 0.2 < right / 30 < 1
    assert neighbours_agree(features, labels, neighbours) == right / 30


def test_scores_by_hand():
    """Two pairs on a line: own distance 1, nearest other class's mean distance."""
    features, labels = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])
    found = embedding_scores(features, labels, 1)
    outer, inner = 1 - 1 / 10.5, 1 - 1 / 9.5
    assert found["silhouette"] == pytest.approx((outer + inner) / 2)
    assert (found["knn"], found["N"], found["knn_high"]) == (1, 4, 1)
    assert found["knn_low"] == pytest.approx(4 / (4 + 1.959963984540054**2))
    alone = embedding_scores(features, np.zeros(4, int), 9)
    assert np.isnan(alone["silhouette"]) and alone["neighbours"] == 3


def test_measured_and_drawn(tmp_path):
    trained = trained_toy()
    held, *_ = held_toy(trained, (9, 3))
    frame, scores = measure_embeddings(trained, held, perplexity=50)
    assert frame["sample_id"].tolist() == [f"toy{i}" for i in range(12)]
    assert frame["class"].tolist() == [str(label) for label in held.labels]
    assert set(frame["domain"]) == {"d0", "d1"} and scores["N"] == 12
    table = pd.DataFrame([dict(run="A") | scores])
    files = draw_embeddings(frame.assign(run="A"), table, tmp_path / "e")
    assert pd.read_csv(files[2])["x"].tolist() == pytest.approx(frame["x"].tolist())
