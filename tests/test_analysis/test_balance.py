"""Balance traces: from logs, and gradients' cosines."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from helpers.held import held_toy, trained_toy
from mmaction_mbcd.analysis.balance import (
    draw_balance,
    gradient_cosines,
    read_traces,
)
from mmaction_mbcd.engine.balance_trace import (
    cosine,
    evaluating,
    unimodal_and_fused_gradients,
)


def log(folder, part, *entries):
    path = folder / part / "vis_data"
    path.mkdir(parents=True)
    lines = [json.dumps(entry) for entry in entries]
    (path / "scalars.json").write_text("\n".join(lines) + "\n")


def step(iteration, epoch, **values):
    named = {key.replace("__", "/"): value for key, value in values.items()}
    return dict(loss=1.0, iter=iteration, epoch=epoch, step=iteration) | named


def test_traces_of_a_resumed_log(tmp_path):
    log(tmp_path, "1", step(5, 1, r__video=1.2, acc__fused=0.5, lr=0.1),
        step(10, 1, r__video=9.0), {"source/top1": 0.5, "source/video/top1": 0.25,
        "source/studio/top1": 0.75, "step": 1})  # fmt: skip
    log(tmp_path, "2", step(10, 1, r__video=1.4, grad_cos__video=-0.5),
        step(20, 2, s__video=0.7))  # fmt: skip
    frame = read_traces(tmp_path, ["video"])
    assert frame.values.tolist() == [
        [0.5, "r", "video", 1.2],
        [0.5, "acc", "fused", 0.5],
        [1.0, "r", "video", 1.4],
        [1.0, "grad_cos", "video", -0.5],
        [2.0, "s", "video", 0.7],
        [1, "source", "video", 0.25],
        [1, "source", "fused", 0.5],
    ]
    files = draw_balance({"A": frame, "B": frame[:2]}, tmp_path / "b")
    assert pd.read_csv(files[2])["run"].tolist() == ["A"] * 7 + ["B"] * 2


def test_a_run_without_a_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="training losses"):
        read_traces(tmp_path, ["video"])


def test_cosines_by_hand():
    a = torch.tensor([3.0, 4.0])
    assert cosine(a, torch.tensor([4.0, 3.0])).item() == pytest.approx(24 / 25)
    assert cosine(a, -7 * a).item() == pytest.approx(-1)
    assert cosine(a, torch.tensor([4.0, -3.0])).item() == pytest.approx(0)
    assert torch.isnan(cosine(a, torch.zeros(2)))


def backward_gradients(trained, held, modality):
    """By backward through a copy, over all clips at once."""
    model = copy.deepcopy(trained.model).eval()
    (states, batch), = held.batches  # fmt: skip
    found = []
    for which in ("own", "fused"):
        model.zero_grad()
        features = {m: model.norms[m](model.encoders[m](states[m])) for m in states}
        logits = model.fused_head(torch.cat(list(features.values()), dim=1))
        if which == "own":
            logits = model.unimodal_heads[modality](features[modality])
        F.cross_entropy(logits, batch.labels).backward()
        grads = [p.grad for p in model.encoders[modality].parameters()]
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    return found


@pytest.mark.parametrize("probe", [False, True])
def test_gradients_against_backward(probe):
    trained = trained_toy(batchnorm=True, probe=probe)
    held, *_ = held_toy(trained, (8,))
    found = unimodal_and_fused_gradients(trained.model, *held.batches[0])
    for m in ("video", "audio"):
        for got, expected in zip(
            found[m], backward_gradients(trained, held, m), strict=True
        ):
            assert torch.allclose(got, expected, atol=1e-12) and expected.norm() > 1e-3
    assert all(p.grad is None for p in trained.model.parameters())


def test_batches_add_up():
    trained = trained_toy()
    absent = {"audio": [0, 1, 6]}
    whole, parts = (held_toy(trained, c, absent)[0] for c in ((8,), (5, 3)))
    found = [gradient_cosines(trained, held) for held in (whole, parts)]
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    pair = backward_gradients(trained, held_toy(trained, (8,))[0], "video")
    without = gradient_cosines(trained, held_toy(trained, (8,))[0])["video"]
    expected = np.dot(*pair) / np.prod([g.norm() for g in pair])
    assert without == pytest.approx(float(expected), abs=1e-12)


def test_without_unimodal_heads_it_says_what_to_do():
    trained = trained_toy(unimodal_head=None)
    held, *_ = held_toy(trained)
    with pytest.raises(ValueError, match=r"set model\.unimodal_head"):
        gradient_cosines(trained, held)


def test_each_part_gets_its_own_mode_back():
    model = trained_toy(batchnorm=True, frozen_stages=0).model.train()
    model.fused_head.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2  # the stems and one head are in eval mode
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
