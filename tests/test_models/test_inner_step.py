"""The inner step against deep-copied references and the paper's expansion, eq. 6."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests_support import assert_same_gradients, gradients
from toys import PlainInnerStep, build_toy, labels_of, total, toy_batch, toy_config

OBJECTIVES = [dict(type="ClassificationObjective")]
MBCD = [*OBJECTIVES, dict(type="CollaborativeDistillation", weight=0.7)]
MODALITIES = ("video", "audio", "flow", "depth")


def run_step(model, batch, alpha, order):
    model.bind_optimizer(PlainInnerStep(alpha, order))
    losses = model.loss(*batch)
    total(losses).backward()
    model.bind_optimizer(None)
    return losses


def unimodal_losses(model, inputs, labels):
    losses = {}
    for m, encoder in model.encoders.items():
        raw = encoder(encoder.stem(inputs[m]))
        logits = model.unimodal_heads[m](model.norms[m](raw))
        losses[m] = F.cross_entropy(logits, labels)
    return losses


def fused_loss(model, inputs, labels):
    features = [
        model.norms[m](encoder(encoder.stem(inputs[m])))
        for m, encoder in model.encoders.items()
    ]
    return F.cross_entropy(model.fused_head(torch.cat(features, 1)), labels)


def encoder_parameters(model):
    return [p for p in model.encoders.parameters() if p.requires_grad]


def reference_gradients(model, batch, alpha, order):
    """Eqs. 5 and 9 without distillation, with an explicitly copied model."""
    inputs, samples = batch
    labels = labels_of(samples)
    at_theta = copy.deepcopy(model)
    unimodal = sum(unimodal_losses(at_theta, inputs, labels).values())
    theta = encoder_parameters(at_theta)
    inner = torch.autograd.grad(unimodal, theta, create_graph=True)

    moved = copy.deepcopy(model)  # a second network whose weights are theta'
    with torch.no_grad():
        for p, g in zip(encoder_parameters(moved), inner, strict=True):
            p -= alpha * g
    fused_loss(moved, inputs, labels).backward()
    outer = [p.grad for p in encoder_parameters(moved)]

    phi = list(at_theta.unimodal_heads.parameters())
    to_phi = [torch.zeros_like(p) for p in phi]
    if order == 2:
        # d theta' / d theta = I - alpha * Hessian, and theta' depends on phi_k
        # through the mixed second derivatives.
        hvp = torch.autograd.grad(
            inner, theta + phi, grad_outputs=outer, retain_graph=True
        )
        hvp, mixed = hvp[: len(theta)], hvp[len(theta) :]
        outer = [v - alpha * h for v, h in zip(outer, hvp, strict=True)]
        to_phi = [-alpha * h for h in mixed]
    unimodal.backward()
    for p, v in zip(theta + phi, outer + to_phi, strict=True):
        p.grad += v
    for p, q in zip(
        at_theta.fused_head.parameters(), moved.fused_head.parameters(), strict=True
    ):
        p.grad = q.grad
    return gradients(at_theta)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("alpha", [0.0, 1e-2, 0.5])
def test_gradients_equal_a_copied_maml_reference(count, order, alpha):
    modalities = MODALITIES[:count]
    model = build_toy(names=modalities, inner_step=dict(), objectives=OBJECTIVES)
    batch = toy_batch(modalities)
    expected = reference_gradients(model, batch, alpha, order)
    run_step(model, batch, alpha, order)
    assert_same_gradients(gradients(model), expected, 1e-10)


def test_order_two_differs_from_order_one():
    results = []
    for order in (1, 2):
        model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
        run_step(model, toy_batch(), 0.5, order)
        results.append(gradients(model)["encoders.video.backbone.layer1.0.weight"])
    assert (results[0] - results[1]).abs().max() > 1e-4


@pytest.mark.parametrize("order", [1, 2])
def test_alpha_zero_is_plain_training(order):
    """To rounding, with teacher, distillation and AMD (same draws)."""
    losses, found = [], []
    for inner_step in (dict(), None):
        model = build_toy(
            inner_step=inner_step, objectives=MBCD, neck=dict(type="AMDFusion")
        )
        model.bind_teacher(build_toy(seed=1, objectives=MBCD).eval())
        torch.manual_seed(5)
        losses.append(total(run_step(model, toy_batch(), 0.0, order)))
        found.append(gradients(model))
    assert abs(losses[0] - losses[1]) < 1e-12
    assert_same_gradients(*found, 1e-12)


def test_expansion_of_equation_six_holds_to_first_order():
    """The remainder of the fused loss shrinks as alpha squared (rate 2)."""
    model = build_toy(inner_step=dict(), objectives=OBJECTIVES)
    inputs, samples = toy_batch()
    labels = labels_of(samples)
    theta = encoder_parameters(model)
    inner = torch.autograd.grad(
        sum(unimodal_losses(model, inputs, labels).values()), theta
    )
    fused = fused_loss(model, inputs, labels)
    outer = torch.autograd.grad(fused, theta)
    alignment = sum((g * v).sum() for g, v in zip(inner, outer, strict=True))
    remainders = []
    for alpha in (0.1, 0.05, 0.025, 0.0125):
        model.bind_optimizer(PlainInnerStep(alpha))
        at_adapted = model.loss(inputs, samples)["loss_fused"]
        remainders.append((at_adapted - (fused - alpha * alignment)).abs().item())
    rates = [a / b for a, b in zip(remainders, remainders[1:], strict=False)]
    assert all(3.5 < rate < 4.5 for rate in rates), rates


def test_scope_limits_what_adapts():
    """With layer2 of audio alone, every other parameter acts at theta."""
    model = build_toy(inner_step=dict(scope=r"audio.*layer2"), objectives=OBJECTIVES)
    layer = "audio.backbone.layer2.0"
    assert set(model.inner_step.theta(model.encoders)) == {
        f"{layer}.weight",
        f"{layer}.bias",
    }
    inputs, samples = toy_batch()
    labels = labels_of(samples)
    moved = copy.deepcopy(model)
    inner = unimodal_losses(moved, inputs, labels)["audio"]
    adapted = list(moved.encoders["audio"].backbone.layer2.parameters())
    steps = torch.autograd.grad(inner, adapted)
    with torch.no_grad():
        for p, g in zip(adapted, steps, strict=True):
            p -= 0.5 * g
    losses = run_step(model, (inputs, samples), 0.5, 1)
    expected = fused_loss(moved, inputs, labels)
    assert losses["loss_fused"].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("mode", ["discard", "shared"])
def test_batchnorm_statistics_of_the_second_pass(mode):
    """'discard' counts one update per step as in plain training, 'shared' two."""
    model = build_toy(batchnorm=True, inner_step=dict(bn_second_pass=mode))
    plain = build_toy(batchnorm=True)
    run_step(model, toy_batch(), 0.1, 1)
    run_step(plain, toy_batch(), 0.1, 1)
    own = model.encoders["video"].backbone.layer1[1]
    reference = plain.encoders["video"].backbone.layer1[1]
    same = torch.equal(own.running_mean, reference.running_mean)
    assert same == (mode == "discard")
    assert int(own.num_batches_tracked) == (1 if mode == "discard" else 2)


@pytest.mark.parametrize(("mode", "runs"), [("discard", 1), ("shared", 2)])
def test_statistics_of_a_drifting_stem(mode, runs):
    """One run moves them by 0.1 of the way to the batch's, two by 0.19."""
    drifting = toy_config(batchnorm=True, frozen_stages=1)["encoders"]
    for encoder in drifting.values():
        encoder["stem_norm_eval"] = False
    model = build_toy(encoders=drifting, inner_step=dict(bn_second_pass=mode))
    still = build_toy(batchnorm=True, frozen_stages=1)
    batch = toy_batch()
    losses = run_step(model, batch, 0.1, 1)
    for m, x in batch[0].items():
        convolution, norm, _ = model.encoders[m].backbone.conv1
        mean = convolution(x).mean(dim=(0, 2)).detach()
        share = 1 - 0.9**runs
        assert torch.allclose(norm.running_mean, share * mean, atol=1e-12, rtol=0)
        untouched = still.encoders[m].backbone.conv1[1].running_mean
        assert not untouched.any() and int(norm.num_batches_tracked) == runs
    # The second run changes the statistics and nothing else.
    once = build_toy(encoders=drifting, inner_step=dict(bn_second_pass="discard"))
    for name, value in run_step(once, batch, 0.1, 1).items():
        assert torch.allclose(losses[name], value, atol=1e-12, rtol=0), name


def test_activation_checkpointing_on_adapted_branches_is_refused():
    model = build_toy(inner_step=dict())
    model.encoders["audio"].backbone.layer2.with_cp = True
    with pytest.raises(ValueError, match=r"encoders\.audio\.backbone\.layer2"):
        model.bind_optimizer(PlainInnerStep())


def test_without_a_wrapper_the_error_names_it():
    model = build_toy(inner_step=dict())
    with pytest.raises(RuntimeError, match=r"optim_wrapper\.type to MBCDOptimWrapper"):
        model.loss(*toy_batch())
