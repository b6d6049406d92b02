"""The wrapper's inner step in the host's own training step."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmaction_mbcd.engine import AmpMBCDOptimWrapper, MBCDOptimWrapper
from mmaction_mbcd.engine.optim_wrapper import InnerStepMixin
from tests_support import assert_same_gradients, gradients
from toys import PlainInnerStep, build_toy, total, toy_batch

OBJECTIVES = [dict(type="ClassificationObjective")]


def wrapper(model, cls=MBCDOptimWrapper, lr=0.1, **kwargs):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    return cls(optimizer=optimizer, **kwargs)


def data(**kwargs):
    inputs, samples = toy_batch(**kwargs)
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize("order", [1, 2])
def test_train_step_applies_the_gradient_of_the_reference(order):
    model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
    reference = copy.deepcopy(model)
    reference.bind_optimizer(PlainInnerStep(0.3, order))
    total(reference.loss(*toy_batch())).backward()
    expected = {
        n: p - 0.1 * p.grad for n, p in reference.named_parameters() if p.requires_grad
    }
    model.train_step(data(), wrapper(model, inner_lr=0.3, order=order))
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert (p - expected[name]).abs().max() < 1e-14, name


def test_the_wrapper_is_lent_for_the_step_only_even_if_it_fails():
    model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
    optim = wrapper(model)
    with optim.optim_context(model):
        assert model._lent.optimizer is optim
    assert model._lent.optimizer is None
    with pytest.raises(RuntimeError), optim.optim_context(model):
        raise RuntimeError
    assert model._lent.optimizer is None


@pytest.mark.parametrize("cls", [MBCDOptimWrapper, OptimWrapper])
def test_accumulation_takes_the_right_number_of_steps(cls):
    """10 micro-batches by 4 are 3 steps, whose gradients are the means."""
    inner = cls is MBCDOptimWrapper
    model = build_toy(inner_step=dict() if inner else None, objectives=OBJECTIVES)
    reference = copy.deepcopy(model)
    optim = wrapper(
        model, cls, accumulative_counts=4, **({"inner_lr": 0.3} if inner else {})
    )
    optim.initialize_count_status(model, 0, 10)
    taken = []
    optim.optimizer.register_step_post_hook(lambda *_: taken.append(optim.inner_count))
    for seed in range(10):
        model.train_step(data(seed=seed), optim)
    assert taken == [4, 8, 10]

    optimizer = wrapper(reference).optimizer
    for group in ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9)):
        for seed in group:
            reference.bind_optimizer(PlainInnerStep(0.3))
            loss = total(reference.loss(*toy_batch(seed=seed)))
            (loss / len(group)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-13)


def test_bfloat16_autocast_agrees_with_float32():
    """Relative error of the whole gradient within bfloat16's 8 bits."""
    found = []
    for enabled in (False, True):
        model = build_toy(dtype=torch.float32, inner_step=dict(), objectives=OBJECTIVES)
        optim = wrapper(model, inner_lr=0.1)
        batch = toy_batch(dtype=torch.float32)
        with (
            optim.optim_context(model),
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
        ):
            losses = model.loss(*batch)
        total(losses).backward()
        found.append(torch.cat([g.flatten() for g in gradients(model).values()]))
    error = (found[0] - found[1]).norm() / found[0].norm()
    assert 1e-5 < error < 2e-2, error


class FakeScaler:
    """Multiplies as GradScaler does and records; no GPU needed."""

    def __init__(self, scale):
        self.factor = scale

    def scale(self, loss):
        return loss * self.factor


class HalfWrapper(InnerStepMixin, OptimWrapper):
    """AmpMBCDOptimWrapper's scaling on a machine without a GPU."""

    _inner_scale = AmpMBCDOptimWrapper._inner_scale


class HalfGradient(torch.autograd.Function):
    """Rounds gradients to float16, as a half-precision backward does."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.half().to(grad.dtype)


@pytest.mark.parametrize(("scale", "low", "high"), [(2.0**16, 0, 1e-3), (1.0, 0.05, 2)])
def test_the_loss_scale_saves_small_inner_gradients_from_underflow(scale, low, high):
    # In float64, since theta - g in float32 would lose g itself.
    p = nn.Parameter(torch.linspace(0.5, 1.5, 50, dtype=torch.float64))
    loss = (HalfGradient.apply(p) ** 2).sum() * 4e-8
    optim = HalfWrapper(optimizer=torch.optim.SGD([p], 0.1), inner_lr=1.0)
    optim.loss_scaler = FakeScaler(scale)
    step = (p - optim.inner_update(loss, {"p": p})["p"]).detach()
    exact = 8e-8 * p
    error = ((step - exact).norm() / exact.norm()).item()
    assert low <= error <= high, error


def test_amp_wrapper_scales_and_refuses_a_machine_without_gpu(monkeypatch):
    p = nn.Parameter(torch.ones(2))
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match="only available training on gpu"):
            AmpMBCDOptimWrapper(optimizer=torch.optim.SGD([p], 0.1))
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True
    )
    optim = AmpMBCDOptimWrapper(
        optimizer=torch.optim.SGD([p], 0.1), inner_lr=0.5, dtype="bfloat16"
    )
    assert isinstance(optim, AmpOptimWrapper) and optim.inner_lr == 0.5
    optim.loss_scaler = FakeScaler(1024.0)
    seen = []
    p.register_hook(lambda g: seen.append(g.clone()))
    adapted = optim.inner_update((p**2).sum(), {"p": p})["p"]
    assert torch.allclose(adapted, torch.zeros(2))  # 1 - 0.5 * 2
    assert torch.allclose(seen[0], torch.full((2,), 2 * 1024.0))


@pytest.fixture
def pretend_gpu(monkeypatch):
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True
    )


def test_float16_is_refused_where_it_would_be_silently_wrong(pretend_gpu):
    p = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([p], 0.1)
    with pytest.raises(ValueError, match="order=2 loses its second-order term"):
        AmpMBCDOptimWrapper(optimizer=sgd, order=2)
    AmpMBCDOptimWrapper(optimizer=sgd, order=2, dtype="bfloat16")
    optim = AmpMBCDOptimWrapper(optimizer=sgd)
    model = build_toy(inner_step=dict(bn_second_pass="shared"))
    with pytest.raises(ValueError, match="overflow"), optim.optim_context(model):
        pass


def test_a_float16_step_agrees_with_float32_and_survives_an_overflow(pretend_gpu):
    """On the CPU's float16 autocast: losses, scaled gradients, and a skipped step."""
    options = dict(
        dtype=torch.float32,
        batchnorm=True,
        inner_step=dict(),
        objectives=OBJECTIVES,
        neck=dict(type="AMDFusion", mode="fixed"),
    )
    batch = toy_batch(dtype=torch.float32, absent={"audio": [1, 2]})
    found = []
    for scale in (None, 2.0**10, 2.0**40):
        model = build_toy(**options)
        sgd = torch.optim.SGD([q for q in model.parameters() if q.requires_grad], 0.1)
        cls = MBCDOptimWrapper if scale is None else AmpMBCDOptimWrapper
        optim = cls(optimizer=sgd, inner_lr=0.1)
        if scale is not None:
            optim.loss_scaler = FakeScaler(scale)
        model.bind_optimizer(optim)
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.float16, enabled=scale is not None):
            losses = model.loss(*batch)
        (total(losses) * (scale or 1)).backward()
        flat = torch.cat([g.flatten() for g in gradients(model).values()])
        found.append(flat / (scale or 1))
        buffers = [b for b in model.buffers() if b.dtype.is_floating_point]
        assert all(torch.isfinite(b).all() for b in buffers)
    error = (found[0] - found[1]).norm() / found[0].norm()
    assert 1e-6 < error < 1e-2, error
    assert not torch.isfinite(found[2]).all()  # the scaler would skip this step


def test_parameters_the_loss_does_not_reach_stay():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optim = MBCDOptimWrapper(optimizer=torch.optim.SGD([p, q], 0.1), inner_lr=0.5)
    adapted = optim.inner_update((p**2).sum(), {"p": p, "q": q})
    assert torch.equal(adapted["q"], q)


def test_wrong_values_and_foreign_models_are_refused():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="inner_lr must not be.*order must be 1 or 2"):
        MBCDOptimWrapper(optimizer=torch.optim.SGD([p], 0.1), inner_lr=-1, order=3)

    class Other(BaseModel):
        def forward(self, *_, **__):
            return {}

    optim = MBCDOptimWrapper(optimizer=torch.optim.SGD([p], 0.1))
    with (
        pytest.raises(TypeError, match="Other has no bind_optimizer"),
        optim.optim_context(Other()),
    ):
        pass


def test_fused_adam_agrees_with_the_plain_one():
    """On equal gradients, within 1e-6 after 50 steps of 0.01 at most."""
    torch.manual_seed(0)
    start = torch.randn(64, 33)
    plain, fused = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        torch.optim.Adam([p], 0.01, weight_decay=1e-4, fused=flag)
        for p, flag in ((plain, False), (fused, True))
    ]
    for _ in range(50):
        plain.grad = torch.randn_like(start)
        fused.grad = plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (plain - start).abs().max() > 0.05
    assert torch.allclose(plain, fused, rtol=0, atol=1e-6)


def test_a_stock_wrapper_on_a_model_with_an_inner_step_is_named():
    model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
    with pytest.raises(RuntimeError, match="MBCDOptimWrapper"):
        model.train_step(data(), wrapper(model, OptimWrapper))


def test_clipping_sees_the_whole_gradient():
    model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
    reference = copy.deepcopy(model)
    optim = wrapper(model, inner_lr=0.3, lr=1.0, clip_grad=dict(max_norm=1e-3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train_step(data(), optim)
    moved = sum((p - before[n]).pow(2).sum() for n, p in model.named_parameters())
    assert moved.sqrt().item() == pytest.approx(1e-3, rel=1e-3)
    reference.bind_optimizer(PlainInnerStep(0.3))
    total(reference.loss(*toy_batch())).backward()
    own = {
        n: before[n] - p.detach()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    found = gradients(reference)
    norm = torch.cat([g.flatten() for g in found.values()]).norm()
    expected = {n: g * 1e-3 / (norm + 1e-6) for n, g in found.items()}
    assert_same_gradients(own, expected, 1e-12)
