"""Layers that several objectives share."""

import copy

import pytest
import torch

from mmaction_mbcd.models import layers
from mmaction_mbcd.models.objectives.simmmdg import Translator


@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_reversed_gradient(factor):
    x = torch.randn(4, 3, requires_grad=True)
    weights = torch.randn(4, 3)
    y = layers.reverse_gradient(x, factor)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    assert torch.allclose(x.grad, -factor * weights)


def test_connected_zero():
    module, loose = torch.nn.Linear(3, 2), torch.ones(4, requires_grad=True)
    module.bias.requires_grad_(False)
    zero = layers.connected_zero(module, loose)
    assert zero == 0
    zero.backward()
    assert torch.equal(module.weight.grad, torch.zeros(2, 3))
    assert module.bias.grad is None
    assert torch.equal(loose.grad, torch.zeros(4))
    assert layers.connected_zero(torch.nn.ReLU()) == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keep", [{0, 1, 2, 3}, {0, 2, 3}, {2}, set()])
def test_batchnorm_sees_present_rows_alone(training, keep):
    head = layers.ProjectionHead(4, 6, 5).double().train(training)
    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([i in keep for i in range(4)])
    reference = copy.deepcopy(head)
    encoded, usable = layers.encode_present(head, x, present)
    assert encoded.shape == (4, 5)
    runs = len(keep) >= (2 if training else 1)
    assert torch.equal(usable, present & runs)
    if runs:
        assert torch.allclose(encoded[present], reference(x[present]), atol=1e-14)
    assert (encoded[~usable] == 0).all()
    for (name, own), other in zip(
        head.named_buffers(), reference.buffers(), strict=True
    ):
        assert torch.equal(own, other), name
    encoded.sum().backward()
    assert x.grad is not None and (x.grad[~usable] == 0).all()
    assert all(p.grad is not None for p in head.parameters())


def test_the_layers_are_those_of_the_published_code():
    def describe(module):
        words = []
        for part in module.layers:
            words.append(type(part).__name__)
            if isinstance(part, torch.nn.Linear):
                words[-1] += f" {part.in_features}-{part.out_features}"
            if isinstance(part, torch.nn.Dropout):
                words[-1] += f" {part.p}"
        return ", ".join(words)

    block = "BatchNorm1d, ReLU"
    with torch.device("meta"):
        parts = (
            layers.ProjectionHead(7),
            Translator(7, 9),
            layers.DomainProjector(7),
            layers.DomainDiscriminator(3),
        )
    assert [describe(part) for part in parts] == [
        f"Linear 7-2048, {block}, Linear 2048-2048, {block}, Linear 2048-128",
        "Linear 7-2048, ReLU, Linear 2048-2048, ReLU, Dropout 0.5, Linear 2048-9",
        "Linear 7-512, ReLU, Dropout 0.5",
        f"Linear 512-256, {block}, Linear 256-3",
    ]
