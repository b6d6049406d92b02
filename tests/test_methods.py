"""Every method trains, resumes, and runs in two processes and in bfloat16."""

import itertools
import math

import pytest
import torch
from mmaction.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope

from method_toys import (
    ADD_ONS,
    METHODS,
    NAMES,
    method_config,
    method_model,
    views_of,
)
from method_worker import batch_of, method_worker, step
from tests_support import compare_runs, gradients, start_two
from toy_runner import hook_of, run_toy
from toys import total, toy_batch


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmaction")


def options_of(method):
    """What a toy run of the method needs, its hooks sped up for 24 steps."""
    cfg = method_config(method)
    hooks = [dict(hook) for hook in cfg.get("custom_hooks") or []]
    for hook in hooks:
        if hook.get("begin_iter"):
            hook["begin_iter"] = 5
        elif hook.get("beta"):
            hook["beta"] = 0.9
    wrapper = dict(cfg["optim_wrapper"], optimizer=dict(type="Adam", lr=0.01))
    views = views_of(method)
    return dict(
        model=method_model(
            method,
            ("video", "audio"),
            data_preprocessor=dict(type="ToyPreprocessor"),
        ),
        optim_wrapper=wrapper,
        train_dataloader__collate_fn=dict(type="collate_views"),
        train_dataloader__dataset=dict(type="ToyDataset", views=views),
        custom_hooks=[*hooks, dict(type="Trace")],
    )


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.long) if m in ADD_ONS else m for m in METHODS],
)
def test_a_stopped_run_continues_to_the_bit(tmp_path, method):
    options = options_of(method)
    by_step = dict(
        type="ResumableCheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=2,
        save_best="source/top1", rule="greater",
    )  # fmt: skip
    options |= dict(default_hooks__checkpoint=by_step, train_cfg__max_epochs=2)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trace = hook_of(run_toy(whole, **options), "Trace")
    assert len(trace.steps) == 12 and all(math.isfinite(s[3]) for s in trace.steps)
    stopping = [*options["custom_hooks"][:-1], dict(type="Trace", stop_at=9)]
    run_toy(resumed, **options | dict(custom_hooks=stopping))
    second = hook_of(run_toy(resumed, **options, resume=True), "Trace")
    assert second.steps == trace.steps[8:]
    for folder in (whole, resumed):
        (folder / "iter_12.pth").rename(folder / "epoch_4.pth")
    compare_runs(whole, resumed)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_gets_a_gradient_and_bfloat16_agrees(method):
    model, _ = step(method)
    seen = {n: False for n, p in model.named_parameters() if p.requires_grad}
    for seed in range(6):
        losses = model.loss(*batch_of(method, seed))
        model.zero_grad()
        total(losses).backward()
        found = gradients(model)
        assert found.keys() == seen.keys()  # DistributedDataParallel needs all
        for name, gradient in found.items():
            assert torch.isfinite(gradient).all(), name
            seen[name] |= bool(gradient.any())
    assert all(seen.values()), [n for n, any_ in seen.items() if not any_]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        half = model.loss(*batch_of(method, 7))
    model.zero_grad()
    total(half).backward()
    assert all(torch.isfinite(g).all() for g in gradients(model).values())
    torch.manual_seed(1)
    full = model.loss(*batch_of(method, 7))
    assert half.keys() == full.keys()
    for key in full:
        if "loss" in key:  # bfloat16 has 8 bits: 0.4 % an operation
            a, b = half[key].item(), full[key].item()
            assert a == pytest.approx(b, rel=0.1, abs=1e-3), key


@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_sample_takes_part_in_nothing(method):
    """Losses and gradients are those of the batch without it; nothing random."""
    results = []
    for lost in (True, False):
        model, teacher = step(method)
        model, teacher = model.double(), teacher.double()
        for module in model.modules():
            for name, value in dict(
                mask_ratio=0.0, dsu=0.0, distill_weight=0.0
            ).items():
                if hasattr(module, name):
                    setattr(module, name, value)
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if getattr(module, "mode", "") == "adaptive":
                module.mode = "none"
        inputs, samples = batch_of(method, 3)
        inputs = {m: x.double() for m, x in inputs.items()}
        count, views = len(samples), views_of(method)
        gone = {3} if views == 1 else {1, 1 + count // 2}
        if lost:
            for row in gone:
                absent = dict.fromkeys(inputs, False)
                samples[row].set_metainfo(dict(skipped="cut off", present=absent))
        else:
            kept = [row for row in range(count) if row not in gone]
            inputs = {m: x[kept] for m, x in inputs.items()}
            samples = [samples[row] for row in kept]
        losses = model.loss(inputs, samples)
        total(losses).backward()
        results.append((losses, gradients(model)))
    (ours, found), (losses, expected) = results
    for key, value in losses.items():
        assert ours[key].item() == pytest.approx(value.item(), abs=1e-9), key
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-9), name


def test_two_processes(tmp_path):
    """Weights stay equal and nothing waits for ever, whatever one of them lacks."""
    start_two(method_worker, str(tmp_path))
    for method in METHODS:
        first, second = (torch.load(tmp_path / f"{method}_{r}.pt") for r in range(2))
        moved = False
        for name, value in first["state"].items():
            assert torch.isfinite(value).all(), (method, name)
            if name in first["parameters"]:
                assert torch.equal(value, second["state"][name]), (method, name)
                moved |= not torch.equal(value, first["start"][name])
        assert moved, method
        assert first["logs"].keys() == second["logs"].keys()


@HOOKS.register_module()
class LossTrace(Hook):
    """Every step's losses."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({k: float(v) for k, v in outputs.items()})


def test_cmrf_distills_once_the_mean_has_started(tmp_path):
    """A copy of the student until iteration 5; the mean enters the losses behind it."""
    options = options_of("cmrf")
    options["custom_hooks"] += [dict(type="LossTrace")]
    runner = run_toy(tmp_path, **options)
    values = [x["loss_flattening"] for x in hook_of(runner, "LossTrace").losses]
    assert values[:5] == [0.0] * 5 and all(v > 0 for v in values[5:])


ORDERS = [
    order
    for size in (1, 2, 3)
    for order in itertools.permutations(("video", "audio", "flow"), size)
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_training_and_evaluation_see_the_same_logits(order):
    """The published GMP trains with v,f,a and evaluates with v,a,f: permuted inputs."""
    config = method_model("erm", NAMES, modalities=list(order))
    config["fused_head"] = dict(config["fused_head"], dropout=0.0)
    for encoder in config["encoders"].values():
        encoder["backbone"]["norm"] = False
    torch.manual_seed(0)
    model = MODELS.build(config).double().train()
    seen = []
    model.fused_head.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    inputs, samples = toy_batch(NAMES)
    model.loss(inputs, samples)
    model.eval()
    scores = torch.stack([s.pred_score for s in model.predict(inputs, samples)])
    shuffled = {m: inputs[m] for m in reversed(NAMES)}  # of the batch, not the model
    tensor = model(shuffled, samples, mode="tensor")
    assert torch.equal(seen[0], tensor) and torch.equal(seen[0], seen[1])
    assert torch.allclose(scores, seen[0].softmax(1), atol=1e-12)
