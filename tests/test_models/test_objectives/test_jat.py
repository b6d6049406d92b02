"""JAT: weights by confusion, and three adversaries."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from helpers.objectives import (
    DOMAINS,
    HALF,
    NAMES,
    SIZES,
    assert_float32_from_half,
    assert_published,
    build,
    ce,
    close,
    entropy,
    leaf,
    mask,
    outputs_of,
    rand,
    rows_of,
    run,
    softmax,
    step,
    sweep,
    valid_rows,
)
from mmaction_mbcd.models.objectives.jat import confusion_weights


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("missing", [False, True])
def test_confusion_weights(count, modalities, missing):
    logits = {m: 2 * rand(count, 3) for m in NAMES[:modalities]}
    rows = {
        m: [i for i in range(count) if not missing or k < i]
        for k, m in enumerate(logits)
    }
    present = {m: mask(count, set(rows[m])) for m in logits}
    expected = {
        m: sum(entropy(softmax(own[i].tolist())) for i in rows[m]) / len(rows[m])
        for m, own in logits.items()
        if rows[m]
    }
    for temperature, m in itertools.product((0.5, 1.0, 3.0), logits):
        weights, entropies = confusion_weights(logits, present, temperature)
        exps = {m: math.exp(h / temperature) for m, h in expected.items()}
        close(entropies[m], expected.get(m, 0.0))
        share = exps.get(m, 0.0) / sum(exps.values()) if exps else 1 / modalities
        close(weights[m], share)


def test_confusion_weights_by_hand():
    # H = ln 2 and 0: the modality whose domain cannot be told gets 2/3.
    logits = {"v": torch.zeros(2, 2), "a": torch.tensor([[100.0, 0.0], [0.0, 100.0]])}
    present = {m: torch.ones(2, dtype=torch.bool) for m in logits}
    weights, _ = confusion_weights(logits, present)
    close(weights["v"], 2 / 3, rel=1e-6)
    close(weights["a"], 1 / 3, rel=1e-6)


def test_confusion_weights_are_not_detached():
    present = {m: torch.ones(3, dtype=torch.bool) for m in "ab"}
    assert gradcheck(
        lambda a, b: confusion_weights({"a": a, "b": b}, present)[0]["a"],
        (leaf(rand(3, 4)), leaf(rand(3, 4))),
    )


def adversaries(objective, outputs, domains=DOMAINS):
    """JAT's three adversarial losses and the entropies H, without any reversal."""
    names = list(outputs.features)
    z, y = outputs.features, outputs.labels
    mod, local, entropies = [], [], {}
    for index, m in enumerate(names):
        rows = rows_of(outputs, m)
        hidden = objective.modality_projectors[m](z[m])
        logits = objective.modality_discriminator(hidden)
        mod.append(ce(logits, torch.full_like(y, index), rows))
        if domains > 1:
            hidden = objective.domain_projectors[m](z[m][rows])
            logits = objective.local_discriminator(hidden)
            local.append(ce(logits, outputs.domains[rows]))
        else:
            logits = outputs.unimodal_logits[m][rows]
        entropies[m] = sum(entropy(softmax(row)) for row in logits.tolist()) / len(rows)
    found = dict(modality=sum(mod) / len(mod))
    if domains > 1:
        valid = valid_rows(outputs)
        logits = objective.global_discriminator(torch.cat(list(z.values()), dim=1))
        found["local"] = sum(local) / len(local)
        found["global"] = ce(logits, outputs.domains, valid)
    return found, entropies


@sweep
@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_joint_adversarial(names, count, absent, domains, temperature):
    objective = build(
        "JointAdversarialLoss",
        names,
        domains,
        unimodal_weight=2.0,
        global_weight=0.3,
        local_weight=0.6,
        modality_weight=0.2,
        temperature=temperature,
    )
    assert objective.needs_domains == (domains > 1)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    found, entropies = adversaries(objective, outputs, domains)
    scale = dict(modality=0.2, local=0.6, **{"global": 0.3})
    for name, expected in found.items():
        close(losses[f"loss_adversary_{name}"], scale[name] * expected)
    exps = {m: math.exp(h / temperature) for m, h in entropies.items()}
    for m in names:
        w = exps[m] / sum(exps.values())
        close(losses[f"weight/{m}"], w)
        expected = ce(outputs.unimodal_logits[m], outputs.labels, rows_of(outputs, m))
        close(losses[f"loss_{m}"], 2 * w * expected)
    valid = valid_rows(outputs)
    close(losses["loss_fused"], ce(outputs.fused_logits, outputs.labels, valid))
    count_of_losses = 2 + len(names) + (2 if domains > 1 else 0)
    assert sum("loss" in key for key in losses) == count_of_losses


@pytest.mark.parametrize(
    ("key", "factor"), [("modality", 0.1), ("local", 0.3), ("global", 0.3)]
)
def test_adversaries_learn_while_features_unlearn(key, factor):
    """The same losses without reversal have the opposite gradient in the features."""
    objective = build("JointAdversarialLoss", NAMES[:2])
    plain = build(
        "JointAdversarialLoss", NAMES[:2], domain_reversal=-1.0, modality_reversal=-1.0
    )
    plain.load_state_dict(objective.state_dict())
    found = []
    for module in (objective, plain):
        outputs = outputs_of(NAMES[:2])
        loss = module(outputs)[f"loss_adversary_{key}"]
        inputs = list(outputs.features.values())
        own = [p for p in module.parameters()]
        found.append(torch.autograd.grad(loss, inputs + own, allow_unused=True))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        assert ours.abs().max() > 1e-6
        assert torch.allclose(ours, -factor * theirs, rtol=1e-10, atol=1e-15)
    for ours, theirs in zip(found[0][2:], found[1][2:], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-15)


def test_the_discriminator_learns_from_the_weights_too():
    objective, outputs, losses = run("JointAdversarialLoss")
    own = list(objective.local_discriminator.parameters())
    gradients = torch.autograd.grad(losses["loss_video"], own)
    assert max(g.abs().max() for g in gradients) > 1e-6


def test_one_domain_has_no_domain_discriminators():
    objective = build("JointAdversarialLoss", NAMES[:2], domains=1)
    assert not any("domain" in n or "global" in n for n, _ in objective.named_modules())


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    def weight(a, b, y):
        present = {"a": y >= 0, "b": y >= 0}
        return confusion_weights({"a": a, "b": b}, present)[0]["a"]

    assert_float32_from_half(weight, dtype)


def test_one_modality_is_refused():
    with pytest.raises(
        ValueError, match=r"JointAdversarialLoss compares .*two; got \['video'\]"
    ):
        build("JointAdversarialLoss", ["video"])


def test_published_coefficients():
    assert_published(
        "jat",
        False,
        JointAdversarialLoss=dict(
            unimodal_weight=3.0,
            global_weight=0.5,
            local_weight=0.5,
            modality_weight=0.1,
            domain_reversal=0.3,
            modality_reversal=0.1,
        ),
    )
