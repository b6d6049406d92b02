"""Collaborative distillation, eq. 8, against sums written from the paper."""

import math

import pytest
import torch

from helpers.objectives import (
    NAMES,
    SHAPES,
    build,
    close,
    kl_reference,
    outputs_of,
    rows_of,
    step,
    sweep,
    valid_rows,
)
from mmaction_mbcd.models.objectives.mbcd import collaborative_distillation


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_collaborative_distillation(shape, count):
    teacher, fused = torch.randn(2, *shape, dtype=torch.float64) * 2
    uni = {m: torch.randn(shape, dtype=torch.float64) for m in NAMES[:count]}
    expected = kl_reference(teacher, fused)
    expected += sum(kl_reference(teacher, logits) for logits in uni.values())
    loss = collaborative_distillation(teacher, fused, uni)
    assert loss.item() == pytest.approx(expected, rel=1e-11)


def test_collaborative_distillation_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    flat = torch.zeros(1, 2, dtype=torch.float64)
    loss = collaborative_distillation(teacher, teacher, {"video": flat})
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_distillation_leaves_the_teacher_alone_and_reaches_every_student():
    teacher, fused, video = (torch.randn(4, 3, requires_grad=True) for _ in range(3))
    collaborative_distillation(teacher, fused, {"video": video}).backward()
    assert teacher.grad is None
    # Gradient of KL(p || softmax(z)) in z is (softmax(z) - p) / N.
    expected = (video.softmax(1) - teacher.softmax(1)) / 4
    assert torch.allclose(video.grad, expected, atol=1e-7)


@sweep
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.0)])
def test_the_loss(names, count, absent, weight, temperature):
    objective = build(
        "CollaborativeDistillation", names, weight=weight, temperature=temperature
    )
    outputs = outputs_of(names, count, absent)
    loss = step(objective, outputs)["loss_distill"]
    teacher = outputs.teacher.fused_logits / temperature
    heads = {m: (z, rows_of(outputs, m)) for m, z in outputs.unimodal_logits.items()}
    heads["fused"] = (outputs.fused_logits, valid_rows(outputs))
    expected = sum(
        kl_reference(teacher[rows], logits[rows] / temperature)
        for logits, rows in heads.values()
    )
    close(loss, weight * temperature**2 * expected)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        build("CollaborativeDistillation", NAMES[:2], temperature=0)
