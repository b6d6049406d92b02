"""Comparisons that several tests share."""


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
