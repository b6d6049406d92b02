"""Comparisons that several tests share."""

import importlib.util
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def gradients(model):
    """``{parameter name: gradient}``, for the parameters that have one."""
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_same_gradients(got, expected, tolerance):
    """Same names, and every entry within the absolute tolerance."""
    assert got.keys() == expected.keys()
    worst = {n: (got[n] - expected[n]).abs().max().item() for n in got}
    assert max(worst.values()) <= tolerance, worst


def assert_same_trees(a, b, path=""):
    """Equal to the bit: tensors, and dicts and lists of them."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_trees(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_trees(x, y, f"{path}/{i}")
    else:
        assert a == b, (path, a, b)


def load_tool(name):
    """A script below ``tools`` as a module."""
    spec = importlib.util.spec_from_file_location(
        f"tool_{name}", ROOT / "tools" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
