"""Every method's step in bfloat16 and float16: right, or not taken at all."""

import copy
import statistics

import pytest
import torch
from mmaction.registry import OPTIM_WRAPPERS
from mmengine.registry import init_default_scope

from method_toys import METHODS, method_config
from method_worker import batch_of, step
from tests_support import assert_same_trees
from toys import total

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"
        ),
    ],
)


@pytest.fixture(autouse=True)
def _as_if_there_were_a_gpu(monkeypatch):
    """MMEngine's wrapper asks for one; torch's autocast and scaler do not."""
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True
    )
    init_default_scope("mmaction")


def stepped(method, dtype, device="cpu", scale=None, seed=7):
    """A training step as MMEngine takes it; model before and after, and the wrapper."""
    model, teacher = step(method)
    model, teacher = model.to(device), teacher.to(device)
    for m, encoder in model.encoders.items():  # one stem, as the hook shares it
        teacher.encoders[m].backbone.conv1 = encoder.backbone.conv1
    model.bind_teacher(teacher)
    before = copy.deepcopy(model.state_dict())
    config = dict(method_config(method)["optim_wrapper"])
    trained = [p for p in model.parameters() if p.requires_grad]
    config["optimizer"] = torch.optim.SGD(trained, 0.1)
    if scale is not None:
        # Of GMP's, too: its gradients need the scale, as its error says.
        config["type"] = "AmpMBCDOptimWrapper"
    wrapper = OPTIM_WRAPPERS.build(config)
    if scale is not None:
        wrapper.loss_scaler = torch.amp.GradScaler(device, init_scale=scale)
    wrapper.taken = []
    wrapper.optimizer.register_step_post_hook(lambda *_: wrapper.taken.append(1))
    if model.inner_step is not None or scale is not None:
        model.bind_optimizer(wrapper)
    inputs, samples = batch_of(method, seed)
    inputs = {m: x.to(device) for m, x in inputs.items()}
    samples = [sample.to(device) for sample in samples]
    torch.manual_seed(1)
    enabled = dtype != torch.float32
    half = dtype if enabled else torch.bfloat16
    with torch.autocast(device, half, enabled=enabled):
        losses = model.loss(inputs, samples)
    wrapper.update_params(total(losses))
    return model, before, wrapper


def change(model, before):
    """What the step did to the trained parameters, as one vector."""
    return torch.cat(
        [
            (p - before[name]).flatten()
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
    )


def running(model):
    return {n: b for n, b in model.named_buffers() if b.dtype.is_floating_point}


QUICK = ("erm", "mbcd", "cmrf_gmp")


@pytest.mark.parametrize(
    "method",
    [
        # Gradients and losses of every method are compared in test_methods.py.
        m
        if m in ("erm", "mbcd", "cmrf_gmp")
        else pytest.param(m, marks=pytest.mark.long)
        for m in METHODS
    ],
)
def test_a_bfloat16_step_agrees_with_float32(method):
    """The whole change within 15 %, in the median of five batches.

    bfloat16 keeps 8 bits: an operation errs by up to 0.4 %, and some twenty follow each
    other from the input to a gradient and back; BatchNorm over eight samples, projected
    gradients and distances enlarge it (1 to 12 % here). Single batches say less: where
    neighbours or a larger gradient are chosen, rounding may choose others. A wrong
    scale, a lost term or an underflow would be off by 50 % and more in all of them.
    """
    errors = []
    for seed in range(100, 105):
        full = change(*stepped(method, torch.float32, seed=seed)[:2])
        half = change(*stepped(method, torch.bfloat16, seed=seed)[:2])
        assert torch.isfinite(half).all() and full.norm() > 1e-3
        errors.append(((half - full).norm() / full.norm()).item())
    assert 1e-4 < statistics.median(errors) < 0.15, errors


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("method", METHODS)
def test_an_overflow_of_float16_is_a_step_not_taken(method, device):
    """A loss scale far too large: weights stay, the scale is halved, no harm is done.

    The forward pass before the overflow was healthy: BatchNorm's statistics have moved
    by it once, as with any scaler, and as many random numbers were drawn.
    """
    good, _, wrapper = stepped(method, torch.float16, device, 2.0**8)
    state = torch.get_rng_state()
    assert wrapper.taken == [1] and wrapper.loss_scaler.get_scale() == 2.0**8
    model, before, wrapper = stepped(method, torch.float16, device, 2.0**60)
    assert wrapper.taken == []  # the teacher moves with the optimizer's steps
    assert wrapper.loss_scaler.get_scale() == 2.0**59
    assert torch.equal(torch.get_rng_state(), state)
    now = model.state_dict()
    names = {name for name, _ in model.named_parameters()}
    assert_same_trees({n: now[n] for n in names}, {n: before[n] for n in names})
    assert_same_trees(running(model), running(good))
    assert all(torch.isfinite(b).all() for b in running(model).values())
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
