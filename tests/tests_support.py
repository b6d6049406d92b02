"""Comparisons that several tests share."""

import importlib.util
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp

import helpers.forked  # noqa: F401  sets what the fork server imports

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


def final_state(folder, epoch=4):
    """The last checkpoint, and what is known about the best."""
    checkpoint = torch.load(folder / f"epoch_{epoch}.pth")
    info = dict(checkpoint["message_hub"]["runtime_info"])
    return checkpoint, {k: info[k] for k in ("best_score", "resume_validated_epoch")}


def compare_runs(whole, resumed):
    """Two folders hold the same final and the same best weights, to the bit."""
    (a, best_a), (b, best_b) = final_state(whole), final_state(resumed)
    assert a.keys() == b.keys()
    for part in {"state_dict", "ema_state_dict", "optimizer"} & a.keys():
        assert_same_trees(a[part], b[part], part)
    assert best_a == best_b
    names = [{p.name for p in d.glob("best_*.pth")} for d in (whole, resumed)]
    assert names[0] == names[1] and len(names[0]) == 1
    best = [torch.load(next(d.glob("best_*.pth"))) for d in (whole, resumed)]
    assert_same_trees(best[0]["state_dict"], best[1]["state_dict"])


def start_two(function, *args):
    """Runs ``function(rank, port, *args)`` in two forked processes.

    They end without ``destroy_process_group``: behind it the model holds the group's
    last reference, and its thread, which wants Python's lock to forget the last
    exchange, can wait for the process for ever, and the process for it (torch 2.13).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(function, (port, *args), nprocs=2, start_method="forkserver")
