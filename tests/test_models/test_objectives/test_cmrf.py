"""CMRF: weighted classification, contrast and interpolated distillation."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from helpers.objectives import (
    NAMES,
    assert_finite_differences,
    assert_published,
    build,
    ce,
    close,
    contrast_reference,
    method,
    outputs_of,
    projected,
    rand,
    rows_of,
    run,
    step,
    sweep,
    toy_of,
    toy_step,
    unit,
    valid_rows,
)
from mmaction_mbcd.models.functional import unit_distance
from mmaction_mbcd.models.objectives.cmrf import (
    draw_interpolation,
    interpolated_teachers,
)
from toys import total


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_interpolation_ratios(alpha):
    count = 20000
    above, below = draw_interpolation(alpha, count, rand(1))
    assert above.shape == below.shape == (count, 1)
    assert above.dtype == torch.float64
    assert 0.5 <= above.min() and above.max() <= 1
    assert 0 <= below.min() and below.max() <= 0.5
    # Conditioning by rejection, as the method is stated.
    draws = np.random.default_rng(0).beta(alpha, alpha, 3 * count)
    for got, expected in ((above, draws[draws > 0.5]), (below, draws[draws < 0.5])):
        got = np.sort(got.squeeze(1).numpy())
        expected = np.sort(expected)
        points = np.concatenate([got, expected])
        gap = np.searchsorted(got, points, "right") / len(got)
        gap -= np.searchsorted(expected, points, "right") / len(expected)
        # Kolmogorov-Smirnov; 2.2 sqrt(1/n + 1/m) is exceeded once in 8,000.
        assert abs(gap).max() < 2.2 * math.sqrt(1 / len(got) + 1 / len(expected))
    # Independent of each other: a fifth standard deviation of the correlation.
    pair = torch.cat([above, below], dim=1).T
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(count)


def test_interpolation_at_small_alpha():
    # Density a / (2 x (1 - x)) away from the ends: P(.4 < b < .6) = a ln 1.5. Were the
    # two gammas behind a draw in float32, both would underflow with P = 0.17.
    above, below = draw_interpolation(0.01, 5000, torch.empty(1))
    for near in ((above < 0.6), (below > 0.4)):
        assert near.float().mean() < 0.01 * math.log(1.5) + 5 * math.sqrt(0.004 / 5000)


def test_interpolation_follows_torch_s_generator():
    torch.manual_seed(4)
    first = draw_interpolation(0.1, 3, torch.empty(1))
    torch.manual_seed(4)
    second = draw_interpolation(0.1, 3, torch.empty(1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_interpolated_teachers_by_hand():
    p, q = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)
    above, below = torch.tensor([[0.75], [1.0]]), torch.tensor([[0.25], [0.0]])
    t_p, t_q = interpolated_teachers(p, q, above, below)
    assert t_p.tolist() == [[0.75, 0.25], [1.0, 0.0]]
    assert t_q.tolist() == [[0.25, 0.75], [0.0, 1.0]]
    # The distillation of the first sample: || u(3, 1) - (1, 0) ||.
    expected = math.sqrt((3 / math.sqrt(10) - 1) ** 2 + 1 / 10)
    close(unit_distance(t_p, p, torch.tensor([True, False])), expected, rel=1e-6)


@sweep
def test_weighted_classification(names, count, absent):
    outputs = outputs_of(names, count, absent)
    objective = build(
        "WeightedClassification",
        names,
        unimodal_weight=1.5,
        modality_weights=dict(audio=0.5),
    )
    losses = step(objective, outputs)
    valid = valid_rows(outputs)
    assert list(losses) == ["loss_fused", *(f"loss_{m}" for m in names)]
    close(losses["loss_fused"], ce(outputs.fused_logits, outputs.labels, valid))
    for m in names:
        expected = ce(outputs.unimodal_logits[m], outputs.labels, rows_of(outputs, m))
        close(losses[f"loss_{m}"], 1.5 * (0.5 if m == "audio" else 1.0) * expected)


@sweep
@pytest.mark.parametrize(
    ("contrast_weight", "distill_weight"), [(3.0, 3.0), (1.0, 0.2)]
)
def test_flattening(names, count, absent, contrast_weight, distill_weight):
    objective = build(
        "RepresentationFlattening",
        names,
        contrast_weight=contrast_weight,
        distill_weight=distill_weight,
        modality_weights=dict(audio=0.5),
    )
    outputs = outputs_of(names, count, absent)
    torch.manual_seed(3)
    losses = step(objective, outputs)
    embeddings = {
        m: projected(objective, m, z, rows_of(outputs, m))  # of whole features
        for m, z in outputs.features.items()
    }
    close(
        losses["loss_contrast"],
        contrast_weight * contrast_reference(embeddings, outputs.labels),
    )
    teacher = outputs.teacher.embeddings["flattening"]
    torch.manual_seed(3)
    half = torch.tensor(0.1, dtype=torch.float64)
    expected = 0.0
    for p, q in itertools.combinations(names, 2):
        draws = torch.distributions.Beta(half, half).sample((2, count))
        rows = rows_of(outputs, p, q)
        for i in rows:
            high, low = draws[0, i], draws[1, i]
            high, low = max(high, 1 - high), min(low, 1 - low)
            for m, lam in ((p, high), (q, low)):
                target = unit(lam * teacher[p][i] + (1 - lam) * teacher[q][i])
                distance = (target - embeddings[m][i]).norm().item()
                expected += (0.5 if m == "audio" else 1.0) * distance / len(rows)
    close(losses["loss_flattening"], distill_weight * expected)


def test_nothing_is_distilled_from_a_copy_of_the_student():
    objective, outputs, losses = run("RepresentationFlattening", started=False)
    assert losses["loss_flattening"] == 0
    gradients = torch.autograd.grad(
        losses["loss_flattening"], list(objective.parameters())
    )
    assert all((g == 0).all() for g in gradients)
    assert step(objective, outputs, started=True)["loss_flattening"] > 0


def test_the_teacher_gets_no_gradient():
    objective, outputs, _ = run("RepresentationFlattening")
    teacher = outputs.teacher.embeddings["flattening"]
    for r in teacher.values():
        assert torch.isfinite(r).all() and not r.requires_grad
        r.requires_grad_()
    total(objective(outputs)).backward()
    assert all(r.grad is None for r in teacher.values())


def test_flattening_of_chosen_pairs():
    pairs = [("flow", "video")]
    objective = build("RepresentationFlattening", NAMES[:3], pairs=pairs)
    outputs = outputs_of(NAMES[:3])
    step(objective, outputs)
    own = outputs.embeddings["flattening"]
    gradients = torch.autograd.grad(
        objective(outputs)["loss_flattening"], list(own.values()), allow_unused=True
    )
    assert [g is not None for g in gradients] == [True, False, True]
    for wrong in ([("video", "smell")], [("video", "video")], []):
        with pytest.raises(ValueError, match="pairs of different modalities out of"):
            build("RepresentationFlattening", NAMES[:3], pairs=wrong)


def test_the_teacher_s_projections_are_the_averaged_ones():
    toy = toy_of("cmrf")
    found = {}
    flattening = toy.objectives[1]
    averaged = copy.deepcopy(flattening).eval()
    with torch.no_grad():  # as toy_of makes the teacher
        for p in averaged.parameters():
            p.mul_(1.1)
    flattening.register_forward_pre_hook(lambda _, args: found.update(outputs=args[0]))
    toy_step(toy)
    outputs = found["outputs"]
    expected = averaged.embed(outputs.teacher)
    for m, r in outputs.teacher.embeddings["flattening"].items():
        assert torch.allclose(r, expected[m]) and not r.requires_grad
        assert not torch.allclose(r, outputs.embeddings["flattening"][m], atol=1e-3)


def test_mixing_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        build("RepresentationFlattening", NAMES[:2], mixing=0.0)


def test_contrast_gradients():
    assert_finite_differences("RepresentationFlattening", "loss_contrast")


def test_published_coefficients():
    assert_published(
        "cmrf",
        False,
        WeightedClassification=dict(
            unimodal_weight=2.0, modality_weights=dict(audio=0.5)
        ),
        RepresentationFlattening=dict(
            contrast_weight=3.0,
            distill_weight=3.0,
            mixing=0.1,
            modality_weights=dict(audio=0.5),
        ),
    )
    hook = method("cmrf").custom_hooks[0]
    assert hook.begin_iter == 400 and hook.evaluate == "student"
