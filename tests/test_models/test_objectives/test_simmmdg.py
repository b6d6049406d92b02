"""SimMMDG: contrast of shared halves, split and translation."""

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
    close,
    contrast_reference,
    kept,
    leaf,
    mask,
    outputs_of,
    present_rows,
    projected,
    rand,
    rows_of,
    run,
    step,
    sweep,
    unit,
)
from mmaction_mbcd.models.objectives import simmmdg
from mmaction_mbcd.models.objectives.simmmdg import half_distance


@pytest.mark.parametrize("count", SIZES)
@kept
def test_half_distance(count, keep):
    z = rand(count, 6)
    rows = present_rows(count, keep)
    total = sum((z[i, c] - z[i, c + 3]).item() ** 2 for i in rows for c in range(3))
    close(half_distance(z, mask(count, keep)), total / 3 / max(len(rows), 1))


def test_half_distance_by_hand():
    # (1 - 3)^2 and (2 - 5)^2: mean 6.5.
    z = torch.tensor([[1.0, 2.0, 3.0, 5.0]], dtype=torch.float64)
    close(half_distance(z), 6.5)
    assert gradcheck(half_distance, (leaf(rand(3, 4)),))


@sweep
@pytest.mark.parametrize("weight", [3.0, 0.5])
def test_supervised_contrastive_loss(names, count, absent, weight):
    objective = build("SupervisedContrastiveLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    loss = step(objective, outputs)["loss_contrast"]
    embeddings = {
        m: projected(objective, m, z[:, : WIDTHS[m] // 2], rows_of(outputs, m))
        for m, z in outputs.features.items()
    }
    close(loss, weight * contrast_reference(embeddings, outputs.labels))


@sweep
@pytest.mark.parametrize("weight", [0.7, 2.0])
def test_feature_split(names, count, absent, weight):
    outputs = outputs_of(names, count, absent)
    loss = step(build("FeatureSplitLoss", names, weight=weight), outputs)["loss_split"]
    terms = []
    for m, z in outputs.features.items():
        rows, half = rows_of(outputs, m), WIDTHS[m] // 2
        squares = [(z[i, c] - z[i, c + half]) ** 2 for i in rows for c in range(half)]
        terms.append(sum(squares) / len(squares))
    close(loss, -weight * sum(terms) / len(terms))
    assert loss < 0


@sweep
@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_translation(names, count, absent, weight):
    objective = build("TranslationLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    loss = step(objective, outputs)["loss_translation"]
    terms = []
    for s, t in itertools.permutations(names, 2):
        rows = rows_of(outputs, s, t)
        translated = objective.translators[s][t](outputs.features[s])
        distances = [
            (unit(translated[i]) - unit(outputs.features[t][i])).norm() for i in rows
        ]
        terms.append(sum(distances) / len(rows))
    assert len(terms) == len(names) * (len(names) - 1)
    close(loss, weight * sum(terms) / len(terms))


def test_translation_moves_its_targets():
    objective, outputs, _ = run("TranslationLoss", NAMES[:2])
    with torch.no_grad():
        for p in objective.translators["audio"].parameters():
            p.zero_()  # nothing is translated out of audio
    gradient = torch.autograd.grad(
        step(objective, outputs)["loss_translation"], outputs.features["audio"]
    )[0]
    assert (gradient.abs().sum(1) > 0).all()


def test_translation_masks_each_source_once_and_no_target(monkeypatch):
    seen = {}

    def watch(s, t):
        def hook(_, inputs):
            seen[s, t] = inputs[0]

        return hook

    objective = build("TranslationLoss", NAMES[:3], mask_ratio=0.3)
    for s, t in itertools.permutations(NAMES[:3], 2):
        objective.translators[s][t].register_forward_pre_hook(watch(s, t))
    outputs = outputs_of(NAMES[:3], count=1000)
    targets = []
    distance = simmmdg.unit_distance

    def spy(a, b, has):
        targets.append(b)
        return distance(a, b, has)

    monkeypatch.setattr(simmmdg, "unit_distance", spy)
    torch.manual_seed(0)
    first = step(objective, outputs)["loss_translation"].item()
    masks = {}
    for (s, _), x in seen.items():
        z = outputs.features[s]
        left = x != 0
        assert torch.equal(x[left], z[left])  # not rescaled
        share = 1 - left.double().mean().item()
        assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / left.numel()))
        assert torch.equal(masks.setdefault(s, left), left)
    assert not torch.equal(masks["video"][:, :4], masks["audio"])
    whole = [id(z) for z in outputs.features.values()]
    assert all(id(target) in whole for target in targets) and len(targets) == 6
    torch.manual_seed(0)
    assert step(objective, outputs)["loss_translation"].item() == first
    plain = build("TranslationLoss", NAMES[:3])
    plain.load_state_dict(objective.state_dict())
    assert step(plain, outputs)["loss_translation"].item() != first
    objective.eval()
    assert torch.equal(
        step(objective, outputs)["loss_translation"],
        step(plain.eval(), outputs)["loss_translation"],
    )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    assert_float32_from_half(lambda a, b, y: half_distance(a), dtype)


@pytest.mark.parametrize(
    ("name", "channels", "kwargs", "message"),
    [
        ("FeatureSplitLoss", dict(v=5, a=4), {}, r"even number .*got \{'v': 5\}"),
        ("SupervisedContrastiveLoss", dict(v=1), {}, r"\['v'\] have 1"),
        ("TranslationLoss", dict(v=4, a=4), dict(mask_ratio=1.0), r"\[0, 1\); got 1"),
    ],
)
def test_configs_that_cannot_work(name, channels, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type=name, channels=channels, **kwargs))


def test_contrast_gradients():
    assert_finite_differences("SupervisedContrastiveLoss", "loss_contrast")


def test_published_coefficients():
    assert_published(
        "simmmdg",
        True,
        TranslationLoss=dict(weight=0.1, mask_ratio=0.0),
        SupervisedContrastiveLoss=dict(weight=3.0, temperature=0.1),
        FeatureSplitLoss=dict(weight=0.7),
    )
