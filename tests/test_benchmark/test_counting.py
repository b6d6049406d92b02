"""Counted work against work counted by hand."""

import pytest
import torch
from torch import nn

from mmaction_mbcd.benchmark.counting import count_flops, counting_waits

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer():
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 7 * 5
    # Backward: the weights' gradient alone, as the input needs none.
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * (2 * 3 * 7 * 5)
    x.requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * (2 * 3 * 7 * 5)


def test_flops_of_a_convolution():
    layer = nn.Conv2d(2, 4, 3, bias=False)  # 6 x 6 -> 4 x 4
    x = torch.randn(5, 2, 6, 6)
    forward = 2 * 5 * 4 * (4 * 4) * 2 * (3 * 3)
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * forward


def work_with_waits(there, elsewhere):
    """Eight waits; what is read from the CPU's own tensor is none."""
    product = there * 2
    product.sum().item()
    bool(product.isfinite().all())
    float(product[0])
    product.tolist()
    host = (product + elsewhere).cpu()
    float(host.sum()), host.numpy(), bool(host[0] > 0)
    product[product > 0]
    (product > 0).nonzero()
    torch.linalg.eigvalsh(product[:, None] @ product[None])
    elsewhere.sum().item(), elsewhere.tolist(), elsewhere[elsewhere > 0]
    torch.where(product > 0, product, 0.0).clamp(min=1)


def test_waits_of_known_work():
    there, elsewhere = torch.randn(4), torch.randn(4)
    with counting_waits(CPU, [there]) as found:
        work_with_waits(there, elsewhere)
    assert sum(found.values()) == 8
    assert len(found) == 8 and all("test_counting.py:" in place for place in found)


def test_work_without_the_device_waits_for_nothing():
    there, elsewhere = torch.randn(4), torch.randn(4)
    with counting_waits(CPU, [there]) as found:
        elsewhere.sum().item()
        (there @ elsewhere).sqrt()
    assert not found


def test_waits_in_a_backward_are_found():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            g.sum().item()
            return g * 2

    x = torch.randn(3, requires_grad=True)
    with counting_waits(CPU, [x]) as found:
        Reads.apply(x).sum().backward()
    assert sum(found.values()) == 1


def test_what_is_moved_to_the_device_lies_there():
    x, weight = torch.randn(3), torch.randn(3)
    with counting_waits(CPU, [weight]) as found:
        there = x.to(CPU, non_blocking=True)
        x.sum().item()
        assert not found
        there.sum().item()
        float(there.to("cpu").sum())
    assert sum(found.values()) == 2


def test_a_copy_that_the_device_makes_by_itself_is_no_wait():
    there, pinned, other = torch.randn(3), torch.empty(3), torch.empty(3)
    with counting_waits(CPU, [there]) as found:
        pinned.copy_(there, non_blocking=True)
        pinned.tolist()
        assert not found
        other.copy_(there)
        other.tolist()
    assert sum(found.values()) == 1 and torch.equal(pinned, there)


def test_a_copy_keeps_its_values():
    x = torch.randn(3)
    with counting_waits(CPU, [x]):
        y, values, array = x.cpu(), x.tolist(), x.numpy()
    assert torch.equal(x, y) and values == x.tolist()
    assert array.tolist() == pytest.approx(values, abs=0)
