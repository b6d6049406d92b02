"""MOOSA: entropy weights, entropy minimisation and jigsaw puzzles."""

import itertools
import math

import pytest
import torch
from mmaction.registry import MODELS
from torch.autograd import gradcheck

from helpers.objectives import (
    HALF,
    NAMES,
    SIZES,
    WIDTHS,
    assert_finite_differences,
    assert_float32_from_half,
    assert_published,
    build,
    ce,
    close,
    entropy,
    finite_gradient,
    kept,
    leaf,
    mask,
    outputs_of,
    present_rows,
    rand,
    rows_of,
    softmax,
    step,
    sweep,
    toy_of,
    toy_step,
    valid_rows,
)
from mmaction_mbcd.models.objectives.moosa import (
    draw_permutations,
    entropy_weights,
    permuted_pieces,
    smoothed_entropy,
)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("sets", [2, 3, 5])
@pytest.mark.parametrize("missing", [False, True])
def test_entropy_weights(count, sets, missing):
    logits = {s: 2 * rand(count, 4) for s in range(sets)}
    rows = {s: set(range(s if missing else 0, count)) | {0} for s in logits}
    present = {s: mask(count, rows[s]) if missing else None for s in logits}
    for temperature in (0.5, 1.0, 2.0):
        weights = entropy_weights(logits, present, temperature)
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
    weights = entropy_weights({"v": flat, "": sure}, {"v": None, "": None})
    close(weights["v"], 1 / 3)
    close(weights[""], 2 / 3)
    nobody = torch.tensor([False])
    weights = entropy_weights({"v": flat, "": sure}, {"v": nobody, "": nobody})
    assert [w.item() for w in weights.values()] == [0.5, 0.5]


def test_entropy_weights_are_not_detached():
    def first(a, b):
        present = {"a": torch.tensor([True, True, False]), "b": None}
        return entropy_weights({"a": a, "b": b}, present)["a"]

    assert gradcheck(first, (leaf(rand(3, 4)), leaf(rand(3, 4))))
    _, (gradient, _) = finite_gradient(
        lambda a, b: first(a, b).sum(), rand(3, 4), rand(3, 4)
    )
    assert gradient[:2].abs().max() > 0 and (gradient[2] == 0).all()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
@kept
def test_smoothed_entropy(count, eps, keep):
    logits, rows = rand(count, 4), present_rows(count, keep)
    expected = sum(entropy(softmax(logits[i].tolist()), eps) for i in rows)
    value = smoothed_entropy(logits, mask(count, keep), eps)
    close(value, expected / max(len(rows), 1))


def test_smoothed_entropy_by_hand():
    flat = torch.zeros(2, 4, dtype=torch.float64)
    close(smoothed_entropy(flat), -math.log(0.25 + 1e-5))
    sure = torch.tensor([[2000.0, 0.0]])  # p = 0 must not give 0 * -inf
    value, _ = finite_gradient(smoothed_entropy, sure)
    assert value.item() == pytest.approx(-math.log(1 + 1e-5), rel=0.02)
    assert gradcheck(smoothed_entropy, (leaf(rand(3, 4)),))


@pytest.mark.parametrize(("count", "items"), [(1, 1), (24, 4), (128, 8), (128, 12)])
def test_permutations_are_distinct_and_repeatable(count, items):
    found = draw_permutations(count, items)
    assert found.shape == (count, items)
    assert torch.equal(found.sort(dim=1).values, torch.arange(items).expand(count, -1))
    assert len({tuple(row) for row in found.tolist()}) == count
    assert torch.equal(found, draw_permutations(count, items))
    if items > 4:
        assert not torch.equal(found, draw_permutations(count, items, seed=1))


def test_permutations_are_never_listed(monkeypatch):
    def refuse(*_):
        raise AssertionError("20! orders must not be listed")

    monkeypatch.setattr(itertools, "permutations", refuse)
    state = torch.get_rng_state()
    assert len(draw_permutations(128, 20)) == 128
    assert torch.equal(state, torch.get_rng_state())


def test_permutations_are_uniform():
    # Of 24 orders, 6 are drawn for each of 400 seeds: each is in 100 +- 8.7 draws.
    seen = {}
    for seed in range(400):
        for row in draw_permutations(6, 4, seed).tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert len(seen) == 24
    assert all(abs(n - 100) < 4.5 * 8.7 for n in seen.values())


def test_more_permutations_than_there_are():
    with pytest.raises(ValueError, match="4 pieces have 24 orders; 25 different"):
        draw_permutations(25, 4)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_permuted_pieces(parts, modalities):
    widths = dict(zip(NAMES, (parts, 3 * parts, 2 * parts), strict=False))
    z = {m: rand(5, widths[m]) for m in NAMES[:modalities]}
    orders = draw_permutations(2, parts * modalities, seed=3)
    got = permuted_pieces(z, orders, parts)
    for k, order in enumerate(orders.tolist()):
        for i in range(5):
            pieces = []
            for own in z.values():
                row, width = own[i].tolist(), own.shape[1] // parts
                pieces += [row[c * width : (c + 1) * width] for c in range(parts)]
            expected = [v for piece in order for v in pieces[piece]]
            assert got[k, i].tolist() == expected


@sweep
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 1e-3), (0.4, 0.5)])
def test_entropy_weighted(names, count, absent, temperature, beta):
    outputs = outputs_of(names, count, absent)
    objective = build(
        "EntropyWeightedClassification",
        names,
        temperature=temperature,
        entropy_weight=beta,
    )
    losses = step(objective, outputs)
    valid = valid_rows(outputs)
    sets = {m: (outputs.unimodal_logits[m], rows_of(outputs, m)) for m in names}
    sets["fused"] = (outputs.fused_logits, valid)
    weights = dict.fromkeys(sets, 0.0)
    for i in valid:
        scores = {
            s: math.exp(-entropy(softmax(logits[i].tolist())) / temperature)
            for s, (logits, rows) in sets.items()
            if i in rows
        }
        for s in scores:
            weights[s] += scores[s] / sum(scores.values()) / len(valid)
    smoothed = 0.0
    for s, (logits, rows) in sets.items():
        close(losses[f"weight/{s}"], weights[s])
        close(losses[f"loss_{s}"], weights[s] * ce(logits, outputs.labels, rows))
        for i in rows:
            smoothed += entropy(softmax(logits[i].tolist()), 1e-5) / len(rows)
    close(losses["loss_entropy"], beta * smoothed / (len(names) + 1))
    assert sum(weights.values()) == pytest.approx(1)
    assert not any(v.requires_grad for k, v in losses.items() if "loss" not in k)


@sweep
def test_jigsaw(names, count, absent):
    objective = build("JigsawLoss", names, weight=0.7)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    parts = 4 if len(names) == 2 else 2
    terms, hits = [], []
    for k, order in enumerate(objective.permutations.tolist()):
        assert sorted(order) == list(range(parts * len(names)))
        for i in rows_of(outputs, *names):
            pieces = [
                p
                for m in names
                for p in outputs.features[m][i].split(WIDTHS[m] // parts)
            ]
            logits = objective.head(torch.cat([pieces[j] for j in order]))
            terms.append(-logits.log_softmax(0)[k].item())
            hits.append(logits.argmax().item() == k)
    close(losses["loss_jigsaw"], 0.7 * sum(terms) / len(terms))
    close(losses["acc/jigsaw"], sum(hits) / len(hits))


def test_jigsaw_orders_are_saved_with_the_model():
    state = torch.get_rng_state()
    draw_permutations(5, 8)
    assert torch.equal(state, torch.get_rng_state())
    one, two = (build("JigsawLoss", NAMES[:2], seed=seed) for seed in (0, 1))
    assert not torch.equal(one.permutations, two.permutations)
    again = build("JigsawLoss", NAMES[:2], seed=0)
    assert torch.equal(one.permutations, again.permutations)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.permutations, two.permutations)
    outputs = outputs_of(NAMES[:2])
    assert step(one, outputs)["loss_jigsaw"] == step(two, outputs)["loss_jigsaw"]
    assert not any(p is one.permutations for p in one.parameters())


def test_moosa_with_three_modalities_finishes_a_step():
    toy = toy_of("moosa")
    assert toy.objectives[1].permutations.shape == (128, 6)  # 2 parts of each
    assert toy_step(toy)["loss_jigsaw"].item() == pytest.approx(math.log(128), rel=0.2)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    def weight(a, b, y):
        return entropy_weights({"a": a, "b": b}, {"a": None, "b": None})["a"].sum()

    assert_float32_from_half(weight, dtype)
    assert_float32_from_half(lambda a, b, y: smoothed_entropy(a), dtype)


@pytest.mark.parametrize(
    ("channels", "message"),
    [(dict(v=6, a=4), r"4 equal pieces.*\{'v': 6\}"), (dict(v=8), "24 orders; 128")],
)
def test_puzzles_that_cannot_be_cut(channels, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="JigsawLoss", channels=channels))


def test_gradients_of_weighted_losses():
    assert_finite_differences(
        "EntropyWeightedClassification", "loss_fused", "loss_audio", "loss_entropy"
    )


def test_published_coefficients():
    assert_published(
        "moosa",
        False,
        EntropyWeightedClassification=dict(temperature=1.0, entropy_weight=1e-3),
        JigsawLoss=dict(weight=1.0, parts=None, permutations=128),
        TranslationLoss=dict(weight=0.1, mask_ratio=0.3),
        SupervisedContrastiveLoss=dict(weight=3.0, temperature=0.1),
        FeatureSplitLoss=dict(weight=0.7),
    )
