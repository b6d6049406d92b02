"""GMP against explicit per-parameter computations, in float64."""

import math

import pytest
import torch
from mmengine.model import ModuleDict

from mmaction_mbcd.engine import MBCDOptimWrapper
from mmaction_mbcd.models.layers import DomainDiscriminator, DomainProjector
from mmaction_mbcd.models.objectives.gmp import (
    confidence_ratios,
    modulation_coefficient,
    resolve_conflict,
    truth_probability,
)
from tests_support import gradients
from toys import build_toy, labels_of, total, toy_batch

CLASSIFICATION = dict(type="ClassificationObjective", unimodal_weight=3.0)


def gmp(names=("video", "audio"), classification=CLASSIFICATION, **kwargs):
    options = dict(type="GradientModulation") | kwargs
    model = build_toy(
        names=names,
        num_domains=options.pop("num_domains", 2),
        objectives=[classification],
        extra_objectives=[options],
        norm=None,
    )
    objective = model.objectives[-1]
    if objective.discriminator is not None:
        objective.projectors, objective.discriminator = narrow(model)
    return model


def narrow(model, width=24, hidden=12):
    """GMP's layers of fewer channels, without dropout: it would differ by call."""
    widths = {m: e.feature_channels for m, e in model.encoders.items()}
    projectors = {m: DomainProjector(d, width, 0.0) for m, d in widths.items()}
    discriminator = DomainDiscriminator(model.num_domains, width, hidden)
    return ModuleDict(projectors).double(), discriminator.double()


# --- the formulas ---------------------------------------------------------------


def test_truth_probability_by_hand():
    rows = [[0.0, math.log(3)], [0.0, 0.0], [9.0, 0.0]]
    logits = torch.tensor(rows, dtype=torch.float64)
    truth = torch.tensor([1, 0, 1])
    present = torch.tensor([True, True, False])
    found = truth_probability(logits, truth, present)
    assert found.item() == pytest.approx((3 / 4 + 1 / 2) / 2, abs=1e-12)


def test_ratios_by_hand():
    q = {"v": torch.tensor(0.8), "a": torch.tensor(0.4), "f": torch.tensor(0.2)}
    present = {m: torch.tensor(True) for m in q}
    rho = confidence_ratios(q, present, eps=0)
    assert rho["v"].item() == pytest.approx(0.8 / 0.3)
    assert rho["a"].item() == pytest.approx(0.4 / 0.5)
    sigma = confidence_ratios(q, present, invert=True, eps=0)
    assert sigma["f"].item() == pytest.approx(0.6 / 0.2)
    present["f"] = torch.tensor(False)  # nobody compares with what is absent
    rho = confidence_ratios(q, present, eps=0)
    assert rho["v"].item() == pytest.approx(2) and rho["f"].item() == 1
    present["a"] = torch.tensor(False)
    assert {r.item() for r in confidence_ratios(q, present).values()} == {1.0}


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.3, 1), (1.0, 1), (1.0 + 1e-9, 0.5378828), (2.0, 0.2384058), (50.0, 0.0)],
)
def test_coefficient(ratio, expected):
    found = modulation_coefficient(torch.tensor(ratio, dtype=torch.float64), 0.5)
    assert found.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("keep_b", [True, False])
def test_projection_leaves_no_conflict(keep_b):
    conflicts = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        a, b = (
            [
                torch.randn(shape, generator=generator, dtype=torch.float64)
                for shape in ((3, 2), (4,), (1, 2, 2))
            ]
            for _ in range(2)
        )
        new_a, new_b, conflict = resolve_conflict(a, b, torch.tensor(keep_b))
        before_a, before_b, after_a, after_b = (
            torch.cat([x.flatten() for x in g]) for g in (a, b, new_a, new_b)
        )
        inner = before_a @ before_b
        assert bool(conflict) == bool(inner < 0)
        if inner >= 0:
            assert torch.equal(after_a, before_a) and torch.equal(after_b, before_b)
            continue
        conflicts += 1
        assert abs((after_a @ after_b).item()) < 1e-12
        kept, moved, before, other = (
            (after_b, after_a, before_a, before_b)
            if keep_b
            else (after_a, after_b, before_b, before_a)
        )
        assert torch.equal(kept, other)
        expected = before - inner / (other @ other) * other
        assert torch.allclose(moved, expected, atol=1e-11)
    assert 20 < conflicts < 40


def test_a_vanished_gradient_is_no_conflict():
    a, b = [torch.ones(3)], [torch.zeros(3)]
    new_a, new_b, conflict = resolve_conflict(a, b, torch.tensor(True))
    assert not conflict and torch.equal(new_a[0], a[0]) and not new_b[0].any()


# --- the whole step -------------------------------------------------------------


def reference(model, inputs, samples, terms, projection=True, modulation=True):
    """Gradients of a GMP step, parameter by parameter, from the formulas."""
    names, labels = model.modalities, labels_of(samples)
    domains = torch.tensor([s.domain_index for s in samples])
    objective = model.objectives[1]
    features = {m: model.encoders[m].backbone(inputs[m]).mean(2) for m in names}
    logits = {m: model.unimodal_heads[m](features[m]) for m in names}
    fused = model.fused_head(torch.cat(list(features.values()), 1))
    ce = torch.nn.functional.cross_entropy
    fused_loss = ce(fused, labels)
    unimodal = {m: 3.0 * ce(logits[m], labels) for m in names}
    q = {m: float(logits[m].detach().softmax(1)[range(len(labels)), labels].mean())
         for m in names}  # fmt: skip
    c, domain_loss = {}, {}
    for m in names:
        out = objective.discriminator(objective.projectors[m](features[m]))
        domain_loss[m] = 0.5 * ce(out, domains)
        c[m] = float(out.detach().softmax(1)[range(len(domains)), domains].mean())
    parts = [fused_loss, *unimodal.values()]
    everything = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def grad(loss):
        found = torch.autograd.grad(
            loss, list(everything.values()), retain_graph=True, allow_unused=True
        )
        return {
            n: torch.zeros_like(p) if g is None else g
            for (n, p), g in zip(everything.items(), found, strict=True)
        }

    whole = grad(sum(parts))
    of_domain = grad(sum(domain_loss.values()))
    modulated = ([fused_loss] if "fused" in terms else []) + (
        list(unimodal.values()) if "unimodal" in terms else []
    )
    of_terms = grad(sum(modulated))
    expected, facts = {}, {}
    for m in names:
        others = [j for j in names if j != m]
        rho = q[m] / (sum(q[j] for j in others) / len(others) + 1e-6)
        sigma = sum(c[j] for j in others) / len(others) / (c[m] + 1e-6)
        k = 1 - math.tanh(0.5 * rho) if rho > 1 else 1.0
        p = 1 - math.tanh(0.5 * sigma) if sigma > 1 else 1.0
        if not modulation:
            k = p = 1.0
        encoder = [n for n in everything if n.startswith(f"encoders.{m}.")]
        a = {n: k * of_terms[n] for n in encoder}
        b = {n: -0.3 * p * of_domain[n] for n in encoder}
        inner = float(sum((a[n] * b[n]).sum() for n in encoder))
        if inner < 0 and projection:
            if rho >= sigma:
                size = float(sum((b[n] ** 2).sum() for n in encoder))
                a = {n: a[n] - inner / size * b[n] for n in encoder}
            else:
                size = float(sum((a[n] ** 2).sum() for n in encoder))
                b = {n: b[n] - inner / size * a[n] for n in encoder}
        for n in encoder:
            expected[n] = whole[n] - of_terms[n] + a[n] + b[n]
        for n in everything:
            if n.startswith(f"unimodal_heads.{m}."):
                expected[n] = whole[n] - of_terms[n] + k * of_terms[n]
        facts[m] = dict(rho=rho, sigma=sigma, k=k, p=p, conflict=float(inner < 0))
    for n in everything:
        if n.startswith("objectives."):
            expected[n] = of_domain[n]
        elif n.startswith("fused_head."):
            expected[n] = whole[n]
    return expected, facts


@pytest.mark.parametrize("names", [("video", "audio"), ("video", "audio", "flow")])
@pytest.mark.parametrize("terms", [("fused", "unimodal"), ("unimodal",), ("fused",)])
def test_the_update_is_the_explicit_one(names, terms):
    seen = set()
    for seed in range(6):
        model = gmp(names, terms=terms)
        inputs, samples = toy_batch(names, seed=seed)
        losses = model.loss(inputs, samples)
        assert losses["loss_gmp"].item() == 0
        total(losses).backward()
        expected, facts = reference(model, inputs, samples, terms)
        found = gradients(model)
        assert found.keys() == expected.keys()
        for n in expected:
            assert torch.allclose(found[n], expected[n], atol=1e-12), n
        for m in names:
            for key in ("rho", "sigma", "k", "p", "conflict"):
                value = losses[f"{key}/{m}"].item()
                assert value == pytest.approx(facts[m][key], abs=1e-12)
            gamma = facts[m]["rho"] / facts[m]["sigma"]
            assert losses[f"gamma/{m}"].item() == pytest.approx(gamma)
            seen.add((facts[m]["conflict"], facts[m]["k"] < 1))
    assert {c for c, _ in seen} == {0.0, 1.0} and {k for _, k in seen} == {True, False}


@pytest.mark.parametrize("switch", ["projection", "modulation"])
def test_ablations(switch):
    names = ("video", "audio")
    model = gmp(names, **{switch: False})
    inputs, samples = toy_batch(names, seed=1)
    total(model.loss(inputs, samples)).backward()
    terms = ("fused", "unimodal")
    expected, _ = reference(model, inputs, samples, terms, **{switch: False})
    found = gradients(model)
    assert all(torch.allclose(found[n], expected[n], atol=1e-12) for n in expected)


def test_one_source_has_no_domain_part():
    model = gmp(num_domains=1, terms=("unimodal",))
    inputs, samples = toy_batch(seed=2)
    for sample in samples:
        sample.set_metainfo(dict(domain_index=0))
    losses = model.loss(inputs, samples)
    assert "loss_domain" not in losses and "sigma/video" not in losses
    total(losses).backward()
    found = gradients(model)
    assert not any("objectives" in n for n in found)
    plain = gmp(num_domains=1, terms=("unimodal",), modulation=False)
    total(plain.loss(inputs, samples)).backward()
    off = gradients(plain)
    # The modality that is ahead is slowed by its k, its head exactly so.
    k = {m: losses[f"k/{m}"].item() for m in ("video", "audio")}
    assert sorted(v < 1 for v in k.values()) == [False, True]
    for m, factor in k.items():
        name = next(n for n in found if n.startswith(f"unimodal_heads.{m}."))
        assert torch.allclose(found[name], factor * off[name], atol=1e-12)


def test_the_discriminator_learns_separable_domains():
    model = gmp()
    torch.manual_seed(0)
    objective = model.objectives[1]
    objective.projectors, objective.discriminator = narrow(model, 512, 256)
    inputs, samples = toy_batch(count=16)
    for row, sample in enumerate(samples):
        inputs["video"][row] += 3 * sample.domain_index
        inputs["audio"][row] -= 3 * sample.domain_index
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        losses = model.loss(inputs, samples)
        values.append(losses["loss_domain"].item())
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
    # 0.5 * two modalities * ln 2 at chance
    assert values[0] == pytest.approx(math.log(2), rel=0.5)
    assert values[-1] < 0.05 * values[0]


def test_a_modality_that_the_batch_lacks():
    names = ("video", "audio", "flow")
    model = gmp(names)
    inputs, samples = toy_batch(names, absent={"flow": list(range(8))})
    losses = model.loss(inputs, samples)
    total(losses).backward()
    found = gradients(model)
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.isfinite(g).all() for g in found.values())
    assert losses["rho/flow"].item() == losses["k/flow"].item() == 1
    q = losses["rho/video"].item() * losses["rho/audio"].item()
    assert q == pytest.approx(1, abs=1e-4)  # they are compared with each other alone


def test_probes_are_enough():
    model = build_toy(
        num_domains=2,
        probe=True,
        extra_objectives=[dict(type="GradientModulation", terms=["fused"])],
    )
    model.objectives[-1].projectors, model.objectives[-1].discriminator = narrow(model)
    inputs, samples = toy_batch()
    losses = model.loss(inputs, samples)
    total(losses).backward()
    found = gradients(model)
    plain = build_toy(num_domains=2, probe=True)
    expected = plain.loss(inputs, samples)
    total(expected).backward()
    without = gradients(plain)
    assert losses["rho/video"].item() != 1
    for m in ("video", "audio"):
        assert torch.equal(losses[f"loss_probe_{m}"], expected[f"loss_probe_{m}"])
    # Only the encoders' gradients are modified.
    for name, gradient in without.items():
        same = torch.allclose(found[name], gradient, atol=1e-12)
        assert same == (not name.startswith("encoders.")), name


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 5, 6, 7], None])
def test_one_row_of_a_modality_has_no_domain_confidence(rows):
    """One row alone does not pass BatchNorm: there is nothing to compare."""
    model = gmp()
    inputs, samples = (
        toy_batch(count=1) if rows is None else toy_batch(absent={"audio": rows})
    )
    losses = model.loss(inputs, samples)
    total(losses).backward()
    for m in ("video", "audio"):
        assert losses[f"sigma/{m}"].item() == losses[f"p/{m}"].item() == 1
        assert math.isfinite(losses[f"gamma/{m}"].item())
    assert all(torch.isfinite(g).all() for g in gradients(model).values())


def test_the_loss_scale_changes_nothing():
    """What float16 needs: gradients are taken at 65536 times the loss."""

    class Scaled(MBCDOptimWrapper):
        def _inner_scale(self, loss):
            return torch.tensor(65536.0, dtype=loss.dtype)

    plain, scaled = gmp(), gmp()
    inputs, samples = toy_batch(seed=1)
    total(plain.loss(inputs, samples)).backward()
    scaled.bind_optimizer(Scaled(torch.optim.SGD(scaled.parameters(), 0.1)))
    total(scaled.loss(inputs, samples)).backward()
    ours, expected = gradients(scaled), gradients(plain)
    assert all(torch.equal(ours[n], expected[n]) for n in expected)


def test_float16_without_the_loss_scale_is_refused():
    model = gmp().float()
    inputs, samples = toy_batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        with pytest.raises(RuntimeError, match="set optim_wrapper.type to AmpMBCD"):
            model.loss(inputs, samples)


def test_accumulation_averages_the_modified_gradients():
    model = gmp()
    batches = [toy_batch(seed=s) for s in (1, 2)]
    expected = {}
    for inputs, samples in batches:
        total(model.loss(inputs, samples)).backward()
        for n, g in gradients(model).items():
            expected[n] = expected.get(n, 0) + g / 2
        model.zero_grad()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = MBCDOptimWrapper(torch.optim.SGD(trained, 1.0), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for inputs, samples in batches:
        model.train_step(dict(inputs=inputs, data_samples=samples), wrapper)
    for n, p in model.named_parameters():
        if n in expected:
            assert torch.allclose(start[n] - p, expected[n], atol=1e-12), n


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(terms=["all"]), "terms are fused and unimodal; got \\['all'\\]"),
        (dict(names=("video",)), "needs at least two; got \\['video'\\]"),
        (dict(num_domains=None), "set model.num_domains"),
    ],
)
def test_configs_that_cannot_work(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gmp(**kwargs)


def test_it_must_stand_behind_the_classification():
    model = build_toy(
        num_domains=2,
        objectives=[dict(type="GradientModulation"), CLASSIFICATION],
    )
    with pytest.raises(RuntimeError, match="put it behind the classification"):
        model.loss(*toy_batch())


def test_it_needs_unimodal_heads():
    objectives = [dict(type="GradientModulation")]
    with pytest.raises(ValueError, match="set model.unimodal_head"):
        build_toy(num_domains=2, unimodal_head=None, extra_objectives=objectives)


def test_a_sample_of_no_source_domain_is_named():
    inputs, samples = toy_batch()
    samples[3].set_metainfo(dict(domain_index=-1))
    with pytest.raises(ValueError, match="'toy3' has domain_index -1, but.*2 source"):
        gmp().loss(inputs, samples)
