"""The compared methods' objectives: wiring, missing modalities, gradients, configs."""

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config
from torch.nn import functional as TF

from mmaction_mbcd.models import StepOutputs, layers
from mmaction_mbcd.models import mmdg_functional as F
from toys import build_toy, total, toy_batch

NAMES = ("video", "audio", "flow", "depth")
WIDTHS = dict(video=8, audio=4, flow=12, depth=4)
CLASSES, DOMAINS = 3, 2
METHODS = Path(__file__).parents[2] / "configs" / "mbcd" / "_base_" / "methods"
SMALL = dict(hidden_channels=6)
PROJECTED = dict(hidden_channels=6, out_channels=5)
OBJECTIVES = {
    "NormAlignmentLoss": {},
    "TranslationLoss": dict(SMALL, dropout=0.0),
    "SupervisedContrastiveLoss": PROJECTED,
    "FeatureSplitLoss": {},
    "WeightedClassification": dict(modality_weights=dict(audio=0.5)),
    "EntropyWeightedClassification": {},
    "JigsawLoss": dict(SMALL, permutations=5),
    "RepresentationFlattening": PROJECTED,
    "NonpolarizedEmbedding": PROJECTED,
    "JointAdversarialLoss": dict(SMALL, dropout=0.0),
    "MaximumEntropyRegularizer": {},
}


def build(name, modalities, domains=DOMAINS, dtype=torch.float64, **kwargs):
    """An objective in training mode, its ``filled_in`` arguments supplied."""
    known = dict(
        channels={m: WIDTHS[m] for m in modalities},
        num_classes=CLASSES,
        num_domains=domains,
    )
    filled = {key: known[key] for key in MODELS.get(name).filled_in}
    config = dict(type=name) | OBJECTIVES[name] | kwargs | filled
    return MODELS.build(config).to(dtype).train()


def outputs_of(
    modalities, count=8, absent=None, views=1, dtype=torch.float64, garbage=0.0
):
    """A step's outputs with leaf features; ``absent`` is ``{modality: rows}``."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    absent = absent or {}
    present, features, slots = {}, {}, []
    for m in modalities:
        present[m] = torch.tensor([i not in absent.get(m, ()) for i in range(count)])
        has = present[m].unsqueeze(1)
        features[m] = torch.where(has, draw(count, WIDTHS[m]), garbage).to(dtype)
        features[m].requires_grad_()
        slots.append(features[m] * has)
    unimodal = {m: z @ draw(WIDTHS[m], CLASSES) for m, z in features.items()}
    fused = torch.cat(slots, dim=1)
    valid = torch.stack(list(present.values())).any(dim=0)
    return StepOutputs(
        labels=torch.arange(count) % CLASSES,
        domains=torch.arange(count) % DOMAINS,
        present=present,
        valid=None if valid.all() else valid,
        features=features,
        raw_features=dict(features),
        unimodal_logits=unimodal,
        fused_features=fused,
        fused_logits=fused @ draw(fused.shape[1], CLASSES),
        views=views,
    )


def step(objective, outputs, started=True):
    """What the recognizer does with an objective."""
    if objective.embeds:
        outputs.embeddings[objective.embeds] = objective.embed(outputs)
    if objective.needs_teacher:
        averaged = copy.deepcopy(objective).eval()
        outputs.teacher, outputs.teacher_started = StepOutputs(), started
        with torch.no_grad():
            for p in averaged.parameters():
                p.mul_(1.1)
            outputs.teacher.embeddings[objective.embeds] = averaged.embed(outputs)
    return objective(outputs)


def run(name, modalities=NAMES[:3], started=True, domains=DOMAINS, **kwargs):
    views = 2 if name == "NonpolarizedEmbedding" else 1
    objective = build(name, modalities, domains, kwargs.get("dtype", torch.float64))
    outputs = outputs_of(modalities, views=views, **kwargs)
    return objective, outputs, step(objective, outputs, started)


def rows_of(outputs, *modalities):
    return [
        i
        for i in range(len(outputs.labels))
        if all(outputs.present[m][i] for m in modalities)
    ]


def valid_rows(outputs):
    return [
        i
        for i in range(len(outputs.labels))
        if any(has[i] for has in outputs.present.values())
    ]


def ce(logits, labels, rows=None):
    rows = range(len(labels)) if rows is None else rows
    terms = [-logits[i].log_softmax(0)[labels[i]] for i in rows]
    return sum(terms).item() / len(rows) if terms else 0.0


def entropy(logits):
    p = logits.softmax(0)
    return -(p * p.log()).sum().item()


def unit(x):
    return x / x.norm()


def close(value, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64).item()
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


MISSING = {"audio": {1, 4}, "flow": {0, 1}}
UNREADABLE = {"video": {0, 3}, "audio": {0, 4}}  # sample 0 has nothing
sweep = pytest.mark.parametrize(
    ("modalities", "count", "absent"),
    [
        (2, 8, None),
        (3, 8, None),
        (4, 6, None),
        (3, 5, None),
        (3, 8, MISSING),
        (2, 8, UNREADABLE),
    ],
)


# -------------------------------------------------------------------- the layers


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
    assert describe(layers.ProjectionHead(7)) == (
        f"Linear 7-2048, {block}, Linear 2048-2048, {block}, Linear 2048-128"
    )
    assert describe(layers.Translator(7, 9)) == (
        "Linear 7-2048, ReLU, Linear 2048-2048, ReLU, Dropout 0.5, Linear 2048-9"
    )
    assert describe(layers.DomainProjector(7)) == "Linear 7-512, ReLU, Dropout 0.5"
    assert describe(layers.DomainDiscriminator(3)) == (
        f"Linear 512-256, {block}, Linear 256-3"
    )


# ------------------------------------------------- each objective from its formula


@sweep
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_norm_alignment(modalities, count, absent, weight):
    names = NAMES[:modalities]
    objective = build("NormAlignmentLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    terms = []
    for p, q in itertools.combinations(names, 2):
        if p == "audio":
            p, q = q, p
        rows = rows_of(outputs, p, q)
        n_p, n_q = (
            sum(outputs.features[m][i].norm() for i in rows) / len(rows) for m in (p, q)
        )
        terms.append((n_p / n_q - 1) ** 2)
    close(losses["loss_norm"], weight * sum(terms) / len(terms))
    for m in names:
        rows = rows_of(outputs, m)
        mean = sum(outputs.features[m][i].norm() for i in rows) / len(rows)
        close(losses[f"norm/{m}"], mean)
        assert not losses[f"norm/{m}"].requires_grad


def test_norm_alignment_reads_features_before_layernorm():
    outputs = outputs_of(NAMES[:2])
    expected = step(build("NormAlignmentLoss", NAMES[:2]), outputs)["loss_norm"]
    outputs.features = {
        m: TF.layer_norm(z, z.shape[1:]) for m, z in outputs.features.items()
    }
    assert step(build("NormAlignmentLoss", NAMES[:2]), outputs)["loss_norm"] == expected


@sweep
@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_translation(modalities, count, absent, weight):
    names = NAMES[:modalities]
    objective = build("TranslationLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    loss = step(objective, outputs)["loss_translation"]
    terms = []
    for s, t in itertools.permutations(names, 2):
        rows = rows_of(outputs, s, t)
        translated = objective.translators[s][t](outputs.features[s])
        distances = [
            (unit(translated[i]) - unit(outputs.features[t][i])).norm() for i in rows
        ]
        terms.append(sum(distances) / len(rows))
    assert len(terms) == modalities * (modalities - 1)
    close(loss, weight * sum(terms) / len(terms))


def test_translation_moves_its_targets():
    objective, outputs, losses = run("TranslationLoss", NAMES[:2])
    with torch.no_grad():
        for p in objective.translators["audio"].parameters():
            p.zero_()  # nothing is translated out of audio
    gradient = torch.autograd.grad(
        step(objective, outputs)["loss_translation"], outputs.features["audio"]
    )[0]
    assert (gradient.abs().sum(1) > 0).all()


def test_translation_masks_each_source_once_and_no_target(monkeypatch):
    seen = {}

    def watch(s, t):
        def hook(_, inputs):
            seen[s, t] = inputs[0]

        return hook

    objective = build("TranslationLoss", NAMES[:3], mask_ratio=0.3)
    for s, t in itertools.permutations(NAMES[:3], 2):
        objective.translators[s][t].register_forward_pre_hook(watch(s, t))
    outputs = outputs_of(NAMES[:3], count=1000)
    targets = []
    distance = F.unit_distance
    monkeypatch.setattr(
        F, "unit_distance", lambda a, b, has: targets.append(b) or distance(a, b, has)
    )
    torch.manual_seed(0)
    first = step(objective, outputs)["loss_translation"].item()
    masks = {}
    for (s, _), x in seen.items():
        z = outputs.features[s]
        kept = x != 0
        assert torch.equal(x[kept], z[kept])  # not rescaled
        share = 1 - kept.double().mean().item()
        assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / kept.numel()))
        assert torch.equal(masks.setdefault(s, kept), kept)
    assert not torch.equal(masks["video"][:, :4], masks["audio"])
    whole = [id(z) for z in outputs.features.values()]
    assert all(id(target) in whole for target in targets) and len(targets) == 6
    torch.manual_seed(0)
    assert step(objective, outputs)["loss_translation"].item() == first
    plain = build("TranslationLoss", NAMES[:3])
    plain.load_state_dict(objective.state_dict())
    assert step(plain, outputs)["loss_translation"].item() != first
    objective.eval()
    assert torch.equal(
        step(objective, outputs)["loss_translation"],
        step(plain.eval(), outputs)["loss_translation"],
    )


def projected(objective, m, z, rows):
    """One modality's embeddings of some rows, BatchNorm over these."""
    return dict(zip(rows, objective.projectors.heads[m](z[rows]), strict=True))


def contrast(embeddings, labels, tau=0.1, tau_0=0.07):
    """SupCon by loops; ``embeddings`` is ``{modality: {row: vector}}``."""
    anchors = [
        (e.detach(), labels[i].item())
        for own in embeddings.values()
        for i, e in own.items()
    ]
    terms = []
    for i, (e, y) in enumerate(anchors):
        others = [
            ((e @ o).item() / tau, z) for j, (o, z) in enumerate(anchors) if j != i
        ]
        positives = [s for s, label in others if label == y]
        log_sum = math.log(sum(math.exp(s) for s, _ in others))
        mean = sum(s - log_sum for s in positives) / max(len(positives), 1)
        terms.append(mean if positives else 0.0)
    return -tau / tau_0 * sum(terms) / len(terms)


@sweep
@pytest.mark.parametrize("weight", [3.0, 0.5])
def test_supervised_contrastive(modalities, count, absent, weight):
    names = NAMES[:modalities]
    objective = build("SupervisedContrastiveLoss", names, weight=weight)
    outputs = outputs_of(names, count, absent)
    loss = step(objective, outputs)["loss_contrast"]
    embeddings = {
        m: projected(objective, m, z[:, : WIDTHS[m] // 2], rows_of(outputs, m))
        for m, z in outputs.features.items()
    }
    close(loss, weight * contrast(embeddings, outputs.labels))


@sweep
@pytest.mark.parametrize("weight", [0.7, 2.0])
def test_feature_split(modalities, count, absent, weight):
    names = NAMES[:modalities]
    outputs = outputs_of(names, count, absent)
    loss = step(build("FeatureSplitLoss", names, weight=weight), outputs)["loss_split"]
    terms = []
    for m, z in outputs.features.items():
        rows, half = rows_of(outputs, m), WIDTHS[m] // 2
        squares = [(z[i, c] - z[i, c + half]) ** 2 for i in rows for c in range(half)]
        terms.append(sum(squares) / len(squares))
    close(loss, -weight * sum(terms) / len(terms))
    assert loss < 0


@sweep
def test_weighted_classification(modalities, count, absent):
    names = NAMES[:modalities]
    outputs = outputs_of(names, count, absent)
    losses = step(build("WeightedClassification", names, unimodal_weight=1.5), outputs)
    valid = valid_rows(outputs)
    assert list(losses) == ["loss_fused", *(f"loss_{m}" for m in names)]
    close(losses["loss_fused"], ce(outputs.fused_logits, outputs.labels, valid))
    for m in names:
        expected = ce(outputs.unimodal_logits[m], outputs.labels, rows_of(outputs, m))
        close(losses[f"loss_{m}"], 1.5 * (0.5 if m == "audio" else 1.0) * expected)


@sweep
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 1e-3), (0.4, 0.5)])
def test_entropy_weighted(modalities, count, absent, temperature, beta):
    names = NAMES[:modalities]
    outputs = outputs_of(names, count, absent)
    objective = build(
        "EntropyWeightedClassification",
        names,
        temperature=temperature,
        entropy_weight=beta,
    )
    losses = step(objective, outputs)
    valid = valid_rows(outputs)
    sets = {m: (outputs.unimodal_logits[m], rows_of(outputs, m)) for m in names}
    sets["fused"] = (outputs.fused_logits, valid)
    weights = dict.fromkeys(sets, 0.0)
    for i in valid:
        scores = {
            s: math.exp(-entropy(logits[i]) / temperature)
            for s, (logits, rows) in sets.items()
            if i in rows
        }
        for s in scores:
            weights[s] += scores[s] / sum(scores.values()) / len(valid)
    smoothed = 0.0
    for s, (logits, rows) in sets.items():
        close(losses[f"weight/{s}"], weights[s])
        close(losses[f"loss_{s}"], weights[s] * ce(logits, outputs.labels, rows))
        for i in rows:
            p = logits[i].softmax(0)
            smoothed -= (p * (p + 1e-5).log()).sum().item() / len(rows)
    close(losses["loss_entropy"], beta * smoothed / (modalities + 1))
    assert sum(weights.values()) == pytest.approx(1)
    assert not any(v.requires_grad for k, v in losses.items() if "loss" not in k)


@sweep
def test_jigsaw(modalities, count, absent):
    names = NAMES[:modalities]
    objective = build("JigsawLoss", names, weight=0.7)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    parts = 4 if modalities == 2 else 2
    terms, hits = [], []
    for k, order in enumerate(objective.permutations.tolist()):
        assert sorted(order) == list(range(parts * modalities))
        for i in rows_of(outputs, *names):
            pieces = [
                p
                for m in names
                for p in outputs.features[m][i].split(WIDTHS[m] // parts)
            ]
            logits = objective.head(torch.cat([pieces[j] for j in order]))
            terms.append(-logits.log_softmax(0)[k].item())
            hits.append(logits.argmax().item() == k)
    close(losses["loss_jigsaw"], 0.7 * sum(terms) / len(terms))
    close(losses["acc/jigsaw"], sum(hits) / len(hits))


def test_jigsaw_orders_are_saved_with_the_model():
    state = torch.get_rng_state()
    F.draw_permutations(5, 8)
    assert torch.equal(state, torch.get_rng_state())
    one, two = (build("JigsawLoss", NAMES[:2], seed=seed) for seed in (0, 1))
    assert not torch.equal(one.permutations, two.permutations)
    again = build("JigsawLoss", NAMES[:2], seed=0)
    assert torch.equal(one.permutations, again.permutations)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.permutations, two.permutations)
    outputs = outputs_of(NAMES[:2])
    assert step(one, outputs)["loss_jigsaw"] == step(two, outputs)["loss_jigsaw"]
    assert not any(p is one.permutations for p in one.parameters())


@sweep
@pytest.mark.parametrize(
    ("contrast_weight", "distill_weight"), [(3.0, 3.0), (1.0, 0.2)]
)
def test_flattening(modalities, count, absent, contrast_weight, distill_weight):
    names = NAMES[:modalities]
    objective = build(
        "RepresentationFlattening",
        names,
        contrast_weight=contrast_weight,
        distill_weight=distill_weight,
        modality_weights=dict(audio=0.5),
    )
    outputs = outputs_of(names, count, absent)
    torch.manual_seed(3)
    losses = step(objective, outputs)
    embeddings = {
        m: projected(objective, m, z, rows_of(outputs, m))  # of whole features
        for m, z in outputs.features.items()
    }
    close(
        losses["loss_contrast"], contrast_weight * contrast(embeddings, outputs.labels)
    )
    teacher = outputs.teacher.embeddings["flattening"]
    torch.manual_seed(3)
    half = torch.tensor(0.1, dtype=torch.float64)
    expected = 0.0
    for p, q in itertools.combinations(names, 2):
        draws = torch.distributions.Beta(half, half).sample((2, count))
        rows = rows_of(outputs, p, q)
        for i in rows:
            high, low = draws[0, i], draws[1, i]
            high, low = max(high, 1 - high), min(low, 1 - low)
            for m, lam in ((p, high), (q, low)):
                target = unit(lam * teacher[p][i] + (1 - lam) * teacher[q][i])
                distance = (target - embeddings[m][i]).norm().item()
                expected += (0.5 if m == "audio" else 1.0) * distance / len(rows)
    close(losses["loss_flattening"], distill_weight * expected)


def test_nothing_is_distilled_from_a_copy_of_the_student():
    objective, outputs, losses = run("RepresentationFlattening", started=False)
    assert losses["loss_flattening"] == 0
    gradients = torch.autograd.grad(
        losses["loss_flattening"], list(objective.parameters())
    )
    assert all((g == 0).all() for g in gradients)
    assert step(objective, outputs, started=True)["loss_flattening"] > 0


def test_the_teacher_gets_no_gradient():
    objective, outputs, _ = run("RepresentationFlattening")
    teacher = outputs.teacher.embeddings["flattening"]
    for r in teacher.values():
        assert torch.isfinite(r).all() and not r.requires_grad
        r.requires_grad_()
    total(objective(outputs)).backward()
    assert all(r.grad is None for r in teacher.values())


def test_flattening_of_chosen_pairs():
    pairs = [("flow", "video")]
    objective = build("RepresentationFlattening", NAMES[:3], pairs=pairs)
    outputs = outputs_of(NAMES[:3])
    step(objective, outputs)
    own = outputs.embeddings["flattening"]
    gradients = torch.autograd.grad(
        objective(outputs)["loss_flattening"], list(own.values()), allow_unused=True
    )
    assert [g is not None for g in gradients] == [True, False, True]
    for wrong in ([("video", "smell")], [("video", "video")], []):
        with pytest.raises(ValueError, match="pairs of different modalities out of"):
            build("RepresentationFlattening", NAMES[:3], pairs=wrong)


def nearest_mean(e, k=8):
    """``{row: vector}`` shifted, by sorting."""
    out = {}
    for i, own in e.items():
        others = sorted((j for j in e if j != i), key=lambda j: -(own @ e[j]).item())[
            :k
        ]
        out[i] = unit(0.5 * own + 0.5 * sum(e[j] for j in others) / len(others))
    return out


@pytest.mark.parametrize(
    ("modalities", "clips", "absent"),
    [
        (2, 4, None),
        (3, 6, None),
        (4, 3, None),
        (3, 4, {"audio": {1, 5}, "flow": {0, 1, 4, 5}}),
        (2, 4, {"audio": {1, 5, 2}, "video": {1, 5}}),  # clip 1 has nothing
    ],
)
@pytest.mark.parametrize("weights", [(0.5, 0.7, 0.3, 1 / 16), (1.0, 0.2, 2.0, 0.5)])
def test_nonpolarized(modalities, clips, absent, weights):
    names = NAMES[:modalities]
    half, unc, con, nee = weights
    objective = build(
        "NonpolarizedEmbedding",
        names,
        weight=half,
        unc_weight=unc,
        contrast_weight=con,
        nee_weight=nee,
        neighbours=3,
    )
    outputs = outputs_of(names, 2 * clips, absent, views=2)
    outputs.labels = torch.arange(clips).repeat(2) % CLASSES
    if outputs.valid is not None:  # what rows that are not valid hold does not matter
        outputs.fused_features = outputs.fused_features + 5.0 * (
            ~outputs.valid.unsqueeze(1)
        )
    losses = step(objective, outputs)
    embeddings = {
        m: projected(objective, m, z[:, : WIDTHS[m] // 2], rows_of(outputs, m))
        for m, z in outputs.features.items()
    }
    close(losses["loss_contrast"], half * con * contrast(embeddings, outputs.labels))

    shifted = {m: nearest_mean(e, 3) for m, e in embeddings.items()}
    joined, zero = {}, torch.zeros(5, dtype=torch.float64)
    for i in range(2 * clips):
        parts = [shifted[m].get(i) for m in names]
        if any(part is not None for part in parts):
            joined[i] = unit(torch.cat([zero if p is None else p for p in parts]))
    whole = [i for i in range(clips) if i in joined and i + clips in joined]
    terms = []
    for place, i in enumerate(whole):
        scores = torch.stack([joined[i] @ joined[j + clips] / 0.25 for j in whole])
        terms.append(-scores.log_softmax(0)[place].item())
    close(losses["loss_unc"], half * unc * sum(terms) / len(terms))

    z, rows = outputs.fused_features, valid_rows(outputs)
    lam = torch.linalg.eigvalsh(z[rows].T @ z[rows] / len(rows))
    lam = lam[lam > 1e-6] / lam[lam > 1e-6].sum()
    close(losses["loss_nee"], half * nee * (lam * (lam + 1e-10).log()).sum())


def test_nonpolarized_needs_two_views():
    objective = build("NonpolarizedEmbedding", NAMES[:2])
    with pytest.raises(ValueError, match=r"batch has 1: set .*dataset\.views=2"):
        objective(outputs_of(NAMES[:2]))


def adversaries(objective, outputs, domains=DOMAINS):
    """JAT's three adversarial losses and the entropies H, without any reversal."""
    names = list(outputs.features)
    z, y = outputs.features, outputs.labels
    mod, local, entropies = [], [], {}
    for index, m in enumerate(names):
        rows = rows_of(outputs, m)
        hidden = objective.modality_projectors[m](z[m])
        logits = objective.modality_discriminator(hidden)
        mod.append(ce(logits, torch.full_like(y, index), rows))
        if domains > 1:
            hidden = objective.domain_projectors[m](z[m][rows])
            logits = objective.local_discriminator(hidden)
            local.append(ce(logits, outputs.domains[rows]))
        else:
            logits = outputs.unimodal_logits[m][rows]
        entropies[m] = sum(entropy(row) for row in logits) / len(rows)
    found = dict(modality=sum(mod) / len(mod))
    if domains > 1:
        valid = valid_rows(outputs)
        logits = objective.global_discriminator(torch.cat(list(z.values()), dim=1))
        found["local"] = sum(local) / len(local)
        found["global"] = ce(logits, outputs.domains, valid)
    return found, entropies


@sweep
@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_joint_adversarial(modalities, count, absent, domains, temperature):
    names = NAMES[:modalities]
    objective = build(
        "JointAdversarialLoss",
        names,
        domains,
        unimodal_weight=2.0,
        global_weight=0.3,
        local_weight=0.6,
        modality_weight=0.2,
        temperature=temperature,
    )
    assert objective.needs_domains == (domains > 1)
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    found, entropies = adversaries(objective, outputs, domains)
    scale = dict(modality=0.2, local=0.6, **{"global": 0.3})
    for name, expected in found.items():
        close(losses[f"loss_adversary_{name}"], scale[name] * expected)
    exps = {m: math.exp(h / temperature) for m, h in entropies.items()}
    for m in names:
        w = exps[m] / sum(exps.values())
        close(losses[f"weight/{m}"], w)
        expected = ce(outputs.unimodal_logits[m], outputs.labels, rows_of(outputs, m))
        close(losses[f"loss_{m}"], 2 * w * expected)
    valid = valid_rows(outputs)
    close(losses["loss_fused"], ce(outputs.fused_logits, outputs.labels, valid))
    count_of_losses = 2 + modalities + (2 if domains > 1 else 0)
    assert sum("loss" in key for key in losses) == count_of_losses


@pytest.mark.parametrize(
    ("key", "factor"), [("modality", 0.1), ("local", 0.3), ("global", 0.3)]
)
def test_adversaries_learn_while_features_unlearn(key, factor):
    """The same losses without reversal have the opposite gradient in the features."""
    objective = build("JointAdversarialLoss", NAMES[:2])
    plain = build(
        "JointAdversarialLoss", NAMES[:2], domain_reversal=-1.0, modality_reversal=-1.0
    )
    plain.load_state_dict(objective.state_dict())
    found = []
    for module in (objective, plain):
        outputs = outputs_of(NAMES[:2])
        loss = module(outputs)[f"loss_adversary_{key}"]
        inputs = list(outputs.features.values())
        own = [p for p in module.parameters()]
        found.append(torch.autograd.grad(loss, inputs + own, allow_unused=True))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        assert ours.abs().max() > 1e-6
        assert torch.allclose(ours, -factor * theirs, rtol=1e-10, atol=1e-15)
    for ours, theirs in zip(found[0][2:], found[1][2:], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-15)


def test_the_discriminator_learns_from_the_weights_too():
    objective, outputs, losses = run("JointAdversarialLoss")
    own = list(objective.local_discriminator.parameters())
    gradients = torch.autograd.grad(losses["loss_video"], own)
    assert max(g.abs().max() for g in gradients) > 1e-6


def test_one_domain_has_no_domain_discriminators():
    objective = build("JointAdversarialLoss", NAMES[:2], domains=1)
    assert not any("domain" in n or "global" in n for n, _ in objective.named_modules())


@sweep
@pytest.mark.parametrize("weights", [(3.0, 1.0, 1.0), (0.5, 2.0, 0.1)])
def test_maximum_entropy(modalities, count, absent, weights):
    names = NAMES[:modalities]
    weight, a_1, a_2 = weights
    objective = build(
        "MaximumEntropyRegularizer",
        names,
        weight=weight,
        spread_weight=a_1,
        volume_weight=a_2,
        gamma=1.5,
        eps=0.01,
    )
    outputs = outputs_of(names, count, absent)
    losses = step(objective, outputs)
    spread = volume = 0.0
    for m, z in outputs.features.items():
        z = z[rows_of(outputs, m)]
        spread += (
            sum(max(0.0, 1.5 - z[:, c].std().item()) for c in range(z.shape[1]))
            / z.shape[1]
        )
        wide = torch.corrcoef(z.T) + 0.01 * torch.eye(z.shape[1]).double()
        volume += torch.logdet(wide).item() / z.shape[1]
    close(losses["loss_spread"], weight * a_1 * spread)
    close(losses["loss_volume"], -weight * a_2 * volume)


# --------------------------------------------------------------------- edge cases


@pytest.mark.parametrize(
    "name",
    ["SupervisedContrastiveLoss", "RepresentationFlattening", "NonpolarizedEmbedding"],
)
def test_a_single_row_has_no_batchnorm_and_is_left_out(name):
    """Flow on one sample: the losses are those of video and audio."""
    found = []
    for modalities in (NAMES[:3], NAMES[:2]):
        objective, outputs, _ = run(name, modalities, absent={"flow": {*range(7)}})
        for m in NAMES[:2]:
            torch.manual_seed(5)
            for p in objective.projectors.heads[m].parameters():
                torch.nn.init.normal_(p)
            for part in objective.projectors.heads[m].layers:
                if isinstance(part, torch.nn.BatchNorm1d):
                    part.reset_running_stats()  # the teacher's are a copy
        torch.manual_seed(5)  # the pair of video and audio draws first
        found.append(step(objective, outputs))
    for key in found[0].keys() - {"loss_nee"}:  # of the features, not projections
        close(found[0][key], found[1][key].detach())


ALL = set(range(8))
CASES = {
    "full": {},
    "one modality nowhere": dict(absent={"audio": ALL}),
    "no pair together": dict(
        absent={"video": {0, 1, 2}, "audio": {3, 4, 5, 6, 7}, "flow": {0, 1, 2, 6, 7}}
    ),
    "one sample has audio": dict(absent={"audio": ALL - {3}}),
    "every modality alone once": dict(
        absent={"video": ALL - {0}, "audio": ALL - {1}, "flow": ALL - {2}}
    ),
    "nothing at all": dict(absent={m: ALL for m in NAMES[:3]}),
    "one sample": dict(count=1),
    "two samples": dict(count=2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("special", ["", "one class", "zero features", "one domain"])
def test_every_parameter_gets_a_finite_gradient(name, case, special):
    domains = 1 if special == "one domain" else DOMAINS
    kwargs = dict(CASES[case])
    if name == "NonpolarizedEmbedding" and "count" in kwargs:
        kwargs["count"] *= 2  # two views
    objective, outputs, _ = run(name, domains=domains, **kwargs)
    if special == "one class":
        outputs.labels = torch.zeros_like(outputs.labels)
    if special == "zero features":
        with torch.no_grad():
            for z in outputs.features.values():
                z.zero_()
        outputs.fused_features = torch.cat(list(outputs.features.values()), dim=1)
    losses = step(objective, outputs)
    assert all(v.ndim == 0 and torch.isfinite(v) for v in losses.values())
    total(losses).backward()
    for key, p in objective.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
        if case == "full" and not special and p.ndim == 2:
            assert p.grad.abs().max() > 0, key  # biases before BatchNorm have none
    for z in outputs.features.values():
        assert z.grad is None or torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_in_the_rows_of_absent_samples_does_not_matter(name):
    found = []
    for garbage in (0.0, 7.0):
        torch.manual_seed(1)
        _, outputs, losses = run(name, absent=MISSING, garbage=garbage)
        found.append(losses)
        total(losses).backward()
        for m, rows in MISSING.items():
            gradient = outputs.features[m].grad
            assert gradient is None or (gradient[list(rows)] == 0).all()
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.allclose(value, found[1][key], rtol=1e-12), key


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("absent", [None, {"audio": ALL}])
@pytest.mark.parametrize("kind", ["autocast", "module"])
def test_bfloat16(name, absent, kind):
    views = 2 if name == "NonpolarizedEmbedding" else 1
    dtype = torch.bfloat16 if kind == "module" else torch.float32
    torch.manual_seed(1)
    exact = build(name, NAMES[:3], dtype=torch.float32)
    objective = copy.deepcopy(exact).to(dtype)
    values = []
    for module, own, autocast in (
        (exact, torch.float32, False),
        (objective, dtype, kind == "autocast"),
    ):
        outputs = outputs_of(NAMES[:3], absent=absent, views=views, dtype=own)
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = step(module, outputs)
        assert all(torch.isfinite(v) for v in losses.values())
        total(losses).backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
        values.append({k: v.item() for k, v in losses.items() if "loss" in k})
    for key, value in values[1].items():
        # Rounded inputs move a value by some per cent, not by factors.
        assert value == pytest.approx(values[0][key], rel=0.15, abs=0.15), key


@pytest.mark.parametrize(
    "name",
    [
        "NormAlignmentLoss",
        "TranslationLoss",
        "RepresentationFlattening",
        "JointAdversarialLoss",
    ],
)
def test_one_modality_is_refused_where_pairs_are_needed(name):
    with pytest.raises(ValueError, match=rf"{name} compares .*two; got \['video'\]"):
        build(name, ["video"])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("modalities", [("smell", "touch"), ("a", "b", "c", "d", "e")])
def test_modalities_of_any_name_and_number(name, modalities, monkeypatch):
    for m in modalities:
        monkeypatch.setitem(WIDTHS, m, 8)
    _, _, losses = run(name, modalities)
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize(
    ("name", "channels", "kwargs", "message"),
    [
        ("FeatureSplitLoss", dict(v=5, a=4), {}, r"even number .*got \{'v': 5\}"),
        ("JigsawLoss", dict(v=6, a=4), {}, r"4 equal pieces.*\{'v': 6\}"),
        ("JigsawLoss", dict(v=8), {}, "4 pieces have 24 orders; 128"),
        ("SupervisedContrastiveLoss", dict(v=1), {}, r"\['v'\] have 1"),
        ("NonpolarizedEmbedding", dict(v=1), {}, r"\['v'\] have 1"),
        ("TranslationLoss", dict(v=4, a=4), dict(mask_ratio=1.0), r"\[0, 1\); got 1"),
        ("RepresentationFlattening", dict(v=4, a=4), dict(mixing=0.0), "positive"),
        ("MaximumEntropyRegularizer", None, dict(eps=0.0), "positive"),
    ],
)
def test_configs_that_cannot_work(name, channels, kwargs, message):
    filled = {} if channels is None else dict(channels=channels)
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type=name, **filled, **kwargs))


def test_gradients_of_whole_objectives():
    """Finite differences through projectors, BatchNorm and weights."""
    for name, keys in {
        "SupervisedContrastiveLoss": ["loss_contrast"],
        "NonpolarizedEmbedding": ["loss_unc", "loss_nee"],
        "EntropyWeightedClassification": ["loss_fused", "loss_video", "loss_entropy"],
        "RepresentationFlattening": ["loss_contrast"],
    }.items():
        objective, outputs, _ = run(name, NAMES[:2], count=4)
        heads = [torch.randn(WIDTHS[m], CLASSES).double() for m in NAMES[:2]]

        def value(
            video, audio, outputs=outputs, objective=objective, keys=keys, heads=heads
        ):
            z = dict(video=video, audio=audio)
            outputs.features = z
            outputs.fused_features = torch.cat([video, audio], dim=1)
            outputs.unimodal_logits = {
                m: z[m] @ h for m, h in zip(z, heads, strict=True)
            }
            outputs.fused_logits = sum(outputs.unimodal_logits.values())
            losses = step(objective, outputs)
            return tuple(losses[key] for key in keys)

        inputs = [outputs.features[m].detach().requires_grad_() for m in NAMES[:2]]
        assert torch.autograd.gradcheck(value, inputs), name


# ------------------------------------------------------------ with the recognizer


def method(name):
    return Config.fromfile(METHODS / f"{name}.py").method


COMPARED = ["rna_net", "simmmdg", "moosa", "cmrf", "nel", "jat"]


def toy_of(name, modalities=NAMES[:3], extra=(), domains=DOMAINS):
    """A toy recognizer with a method's model, its layers made small."""
    model = method(name).model.to_dict()
    model["objectives"] += extra
    for objective in model["objectives"]:
        if "hidden_channels" in objective:
            objective["hidden_channels"] = 16
    encoders = {
        m: dict(
            type="ModalityEncoder",
            frozen_stages=0,
            backbone=dict(type="ToyBackbone", in_channels=2 + i, width=8),
        )
        for i, m in enumerate(modalities)
    }
    torch.manual_seed(0)
    toy = build_toy(names=modalities, encoders=encoders, num_domains=domains, **model)
    if method(name).custom_hooks:
        teacher = copy.deepcopy(toy).eval()
        with torch.no_grad():
            for p in teacher.objectives.parameters():
                p.mul_(1.1)
        toy.bind_teacher(teacher)
    return toy


def toy_step(toy, name, modalities=NAMES[:3], absent=None):
    inputs, samples = toy_batch(modalities, absent=absent)
    if name == "nel":
        for row, sample in enumerate(samples):
            sample.set_metainfo(dict(view=row // 4))
    return toy.loss(inputs, samples)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize(
    ("modalities", "absent"),
    [(NAMES[:3], None), (NAMES[:2], None), (NAMES[:3], {"audio": list(range(8))})],
)
def test_methods_train_every_part_of_a_recognizer(name, modalities, absent):
    toy = toy_of(name, modalities, extra=[dict(type="MaximumEntropyRegularizer")])
    losses = toy_step(toy, name, modalities, absent)
    assert all(torch.isfinite(v).all() for v in losses.values())
    total(losses).backward()
    for key, p in toy.named_parameters():
        assert (p.grad is not None) == p.requires_grad, key
        assert p.grad is None or torch.isfinite(p.grad).all(), key
        if p.grad is not None and p.ndim > 1 and absent is None:
            assert p.grad.abs().max() > 0, key


def test_the_teacher_s_projections_are_the_averaged_ones():
    toy = toy_of("cmrf")
    found = {}
    flattening = toy.objectives[1]
    flattening.register_forward_pre_hook(lambda _, args: found.update(outputs=args[0]))
    toy_step(toy, "cmrf")
    outputs = found["outputs"]
    averaged = toy._bound.teacher.objectives[1]
    expected = averaged.embed(outputs.teacher)
    for m, r in outputs.teacher.embeddings["flattening"].items():
        assert torch.allclose(r, expected[m]) and not r.requires_grad
        assert not torch.allclose(r, outputs.embeddings["flattening"][m], atol=1e-3)


def test_moosa_with_three_modalities_finishes_a_step():
    toy = toy_of("moosa")
    assert toy.objectives[1].permutations.shape == (128, 6)  # 2 parts of each
    assert toy_step(toy, "moosa")["loss_jigsaw"].item() == pytest.approx(
        math.log(128), rel=0.2
    )


def test_the_published_coefficients():
    """Of each method's loss, as its docstrings and docs/methods.md source them."""
    expected = {
        "rna_net": {"NormAlignmentLoss": dict(weight=1.0, denominator="audio")},
        "simmmdg": {
            "TranslationLoss": dict(weight=0.1, mask_ratio=0.0),
            "SupervisedContrastiveLoss": dict(weight=3.0, temperature=0.1),
            "FeatureSplitLoss": dict(weight=0.7),
        },
        "moosa": {
            "EntropyWeightedClassification": dict(temperature=1.0, entropy_weight=1e-3),
            "JigsawLoss": dict(weight=1.0, parts=None, permutations=128),
            "TranslationLoss": dict(weight=0.1, mask_ratio=0.3),
            "SupervisedContrastiveLoss": dict(weight=3.0, temperature=0.1),
            "FeatureSplitLoss": dict(weight=0.7),
        },
        "cmrf": {
            "WeightedClassification": dict(
                unimodal_weight=2.0, modality_weights=dict(audio=0.5)
            ),
            "RepresentationFlattening": dict(
                contrast_weight=3.0,
                distill_weight=3.0,
                mixing=0.1,
                modality_weights=dict(audio=0.5),
            ),
        },
        "nel": {
            "ClassificationObjective": dict(weight=0.5),
            "NonpolarizedEmbedding": dict(
                weight=0.5, unc_weight=0.7, contrast_weight=0.3, nee_weight=0.0625
            ),
        },
        "jat": {
            "JointAdversarialLoss": dict(
                unimodal_weight=3.0,
                global_weight=0.5,
                local_weight=0.5,
                modality_weight=0.1,
                domain_reversal=0.3,
                modality_reversal=0.1,
            )
        },
    }
    for name, objectives in expected.items():
        found = {o["type"]: o for o in method(name).model.objectives}
        assert found.keys() - {"ClassificationObjective"} == (
            objectives.keys() - {"ClassificationObjective"}
        )
        for kind, values in objectives.items():
            assert values.items() <= found[kind].to_dict().items(), (name, kind)
        head = method(name).model.unimodal_head
        assert head.hidden_channels is None
        assert method(name).model.probe == (name in ("rna_net", "simmmdg", "nel"))
    hook = method("cmrf").custom_hooks[0]
    assert hook.begin_iter == 400 and hook.evaluate == "student"
