"""Toy outputs, references and checks that the tests of objectives share."""

import copy
import functools
import inspect
import math
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config

from mmaction_mbcd.models import Objective, StepOutputs, objectives
from mmaction_mbcd.models.functional import masked_cross_entropy
from toys import PlainInnerStep, build_toy, toy_batch

NAMES = ("video", "audio", "flow", "depth")
WIDTHS = dict(video=8, audio=4, flow=12, depth=4)
CLASSES, DOMAINS = 3, 2
SIZES = [1, 2, 3, 7, 12]
SHAPES = [(1, 2), (3, 4), (16, 8), (7, 3)]
HALF = [torch.bfloat16, torch.float16]
# Every objective, found where it is registered, and every method's config. Ablations
# (tables) and variants of another method (mbcd_second_order) have no losses of their
# own.
OBJECTIVES = [name for name in objectives.__all__ if name != Objective.__name__]
METHODS_FOLDER = Path(__file__).parents[2] / "configs" / "mbcd" / "_base_" / "methods"
_STEMS = sorted(path.stem for path in METHODS_FOLDER.glob("*.py"))
METHODS = [
    name
    for name in _STEMS
    if not name.startswith(("table", *(f"{other}_" for other in _STEMS)))
]
# What makes any objective small and free of dropout, where it has such an argument.
SMALL = dict(hidden_channels=6, out_channels=5, permutations=5, dropout=0.0)

MISSING = {"audio": {1, 4}, "flow": {0, 1}}
UNREADABLE = {"video": {0, 3}, "audio": {0, 4}}  # sample 0 has nothing
sweep = pytest.mark.parametrize(
    ("names", "count", "absent"),
    [
        (NAMES[:2], 8, None),
        (NAMES[:3], 8, None),
        (NAMES[:4], 6, None),
        (NAMES[:3], 5, None),
        (NAMES[:3], 8, MISSING),
        (NAMES[:2], 8, UNREADABLE),
    ],
)
kept = pytest.mark.parametrize("keep", [None, {0, 2}, set()])


# ------------------------------------------------------------------- numbers, masks


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def sphere(*shape):
    x = rand(*shape)
    return x / x.norm(dim=-1, keepdim=True)


def mask(count, keep):
    """All samples (None), or those whose position is in ``keep``."""
    return None if keep is None else torch.tensor([i in keep for i in range(count)])


def present_rows(count, keep):
    return [i for i in range(count) if keep is None or i in keep]


def leaf(x):
    return x.clone().requires_grad_()


def close(value, expected, rel=1e-10, abs=1e-13):
    if isinstance(expected, torch.Tensor):
        expected = expected.item()
    assert value.item() == pytest.approx(expected, rel=rel, abs=abs)


def finite_gradient(function, *inputs):
    """Value and gradients, all finite."""
    inputs = [leaf(x) for x in inputs]
    value = function(*inputs)
    assert torch.isfinite(value)
    gradients = torch.autograd.grad(value, inputs)
    assert all(torch.isfinite(g).all() for g in gradients)
    return value, gradients


def assert_float32_from_half(function, dtype, inputs=1):
    """Value and gradient of ``function(a, b, labels)`` on half-precision inputs.

    Finite, in float32, also under autocast, and those of float64 to 1e-4. ``inputs``
    is how many of a and b the value depends on.
    """
    a, b = (torch.randn(8, 6).to(dtype) for _ in range(2))
    y = torch.arange(8) % 3
    exact = function(a.double(), b.double(), y).item()
    finite_gradient(lambda *x: function(*x, *(a, b)[len(x) :], y), *(a, b)[:inputs])
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = function(a, b, y)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------------- references


def norm(v):
    return math.sqrt(sum(x * x for x in v))


def unit(x):
    return x / x.norm()


def softmax(row):
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def entropy(p, eps=0.0):
    return -sum(v * math.log(v + eps) for v in p)


def ce(logits, labels, rows=None):
    """Mean cross-entropy over some rows, 0 over none."""
    rows = range(len(labels)) if rows is None else rows
    terms = [-math.log(softmax(logits[i].tolist())[labels[i]]) for i in rows]
    return sum(terms) / max(len(terms), 1)


def kl_reference(teacher, student):
    total = 0.0
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        pairs = zip(softmax(t), softmax(s), strict=True)
        total += sum(p * (math.log(p) - math.log(q)) for p, q in pairs)
    return total / len(teacher)


def contrast_reference(embeddings, labels, tau=0.1, tau_0=0.07):
    """SupCon by loops over anchors; ``embeddings`` is ``{modality: {row: vector}}``."""
    anchors = [
        (e.tolist(), int(labels[i]))
        for own in embeddings.values()
        for i, e in own.items()
    ]
    total = 0.0
    for i, (e, y) in enumerate(anchors):
        others = [a for j, a in enumerate(anchors) if j != i]
        scores = [
            sum(a * b for a, b in zip(e, o, strict=True)) / tau for o, _ in others
        ]
        positives = [
            s for s, (_, label) in zip(scores, others, strict=True) if label == y
        ]
        if positives:
            log_sum = math.log(sum(math.exp(s) for s in scores))
            total += sum(s - log_sum for s in positives) / len(positives)
    return -tau / tau_0 * total / max(len(anchors), 1)


# ------------------------------------------------------- an objective and its inputs


def build(name, modalities, domains=DOMAINS, dtype=torch.float64, **kwargs):
    """An objective in training mode, the recognizer's arguments filled in."""
    known = dict(
        channels={m: WIDTHS[m] for m in modalities},
        num_classes=CLASSES,
        num_domains=domains,
    )
    kind = MODELS.get(name)
    takes = inspect.signature(kind).parameters
    small = {key: value for key, value in SMALL.items() if key in takes}
    filled = {key: known[key] for key in kind.filled_in}
    return MODELS.build(dict(type=name) | small | kwargs | filled).to(dtype).train()


def outputs_of(
    modalities, count=8, absent=None, views=1, dtype=torch.float64, garbage=0.0
):
    """A step's outputs with leaf features; ``absent`` is ``{modality: rows}``."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    absent = absent or {}
    labels = torch.arange(count) % CLASSES
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
        labels=labels,
        domains=torch.arange(count) % DOMAINS,
        present=present,
        valid=None if valid.all() else valid,
        features=features,
        raw_features=dict(features),
        unimodal_logits=unimodal,
        unimodal_ce={
            m: masked_cross_entropy(logits, labels, present[m])
            for m, logits in unimodal.items()
        },
        fused_features=fused,
        fused_logits=fused @ draw(fused.shape[1], CLASSES),
        views=views,
        # The leaves take the place of the encoders' parameters.
        theta={m: {"z": z} for m, z in features.items()},
    )


@torch.no_grad()
def teacher_of(objective, outputs):
    """Outputs of a teacher whose parameters are 1.1 times the student's."""
    teacher = StepOutputs(fused_logits=outputs.fused_logits.detach() / 2)
    own = [p.clone() for p in objective.parameters()]
    training = objective.training
    for p in objective.parameters():  # not a deep copy, which takes most of a step
        p.mul_(1.1)
    teacher.embeddings[objective.embeds] = objective.eval().embed(outputs)
    for p, value in zip(objective.parameters(), own, strict=True):
        p.copy_(value)
    objective.train(training)
    return teacher


def step(objective, outputs, started=True):
    """What the recognizer does with an objective."""
    if objective.needs_teacher:
        outputs.teacher_started = started
        outputs.teacher = teacher_of(objective, outputs)
    if objective.embeds:
        outputs.embeddings[objective.embeds] = objective.embed(outputs)
    if objective.needs_theta:  # it modifies the gradients of the losses before it
        outputs.losses = MODELS.build(dict(type="ClassificationObjective"))(outputs)
    return objective(outputs)


def run(name, modalities=NAMES[:3], started=True, domains=DOMAINS, **kwargs):
    """An objective, a step's outputs and its losses."""
    objective = build(name, modalities, domains, kwargs.get("dtype", torch.float64))
    outputs = outputs_of(modalities, **kwargs)
    outputs.views = objective.needs_views
    return objective, outputs, step(objective, outputs, started)


def rows_of(outputs, *modalities):
    """The rows that have all of some modalities."""
    has = torch.stack([outputs.present[m] for m in modalities]).all(dim=0)
    return has.nonzero().flatten().tolist()


def valid_rows(outputs):
    """The rows that have any modality."""
    has = torch.stack(list(outputs.present.values())).any(dim=0)
    return has.nonzero().flatten().tolist()


def projected(objective, m, z, rows):
    """One modality's embeddings of some rows, BatchNorm over these."""
    return dict(zip(rows, objective.projectors.heads[m](z[rows]), strict=True))


def assert_finite_differences(name, *keys):
    """Gradients of losses through projectors, BatchNorm and weights.

    The teacher stays as it is, and logits are linear in the features of two modalities.
    """
    names = NAMES[1::2]  # the narrow ones: every channel of every row is moved
    objective, outputs, _ = run(name, names, count=4)
    heads = {m: rand(WIDTHS[m], CLASSES) for m in names}

    def losses(*features):
        outputs.features = dict(zip(names, features, strict=True))
        outputs.fused_features = torch.cat(features, dim=1)
        outputs.unimodal_logits = {m: outputs.features[m] @ heads[m] for m in names}
        outputs.fused_logits = sum(outputs.unimodal_logits.values())
        if objective.embeds:
            outputs.embeddings[objective.embeds] = objective.embed(outputs)
        found = objective(outputs)
        return tuple(found[key] for key in keys)

    inputs = [leaf(outputs.features[m].detach()) for m in names]
    assert torch.autograd.gradcheck(losses, inputs)


# -------------------------------------------------------------- methods' own configs


@functools.cache
def method(name):
    """What the base config of a method states."""
    return Config.fromfile(METHODS_FOLDER / f"{name}.py").method


def assert_published(name, probe, **expected):
    """The losses of a method's config, and the coefficients that sources give."""
    model = method(name).model
    found = {o["type"]: o.to_dict() for o in model.objectives}
    plain = {"ClassificationObjective"}
    assert found.keys() - plain == expected.keys() - plain
    for kind, values in expected.items():
        assert values.items() <= found[kind].items(), kind
    assert model.unimodal_head.hidden_channels is None
    assert model.probe == probe


def toy_of(name, modalities=NAMES[:3], extra=(), domains=DOMAINS):
    """A toy recognizer with a method's model, its layers made small."""
    model = copy.deepcopy(method(name).model.to_dict())
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
    if method(name).get("custom_hooks"):
        teacher = copy.deepcopy(toy).eval()
        with torch.no_grad():
            for p in teacher.objectives.parameters():
                p.mul_(1.1)
        toy.bind_teacher(teacher)
    if toy.inner_step is not None:
        toy.bind_optimizer(PlainInnerStep())
    return toy


def toy_step(toy, modalities=NAMES[:3], absent=None):
    """The losses of a step of such a toy, of two views if an objective asks."""
    inputs, samples = toy_batch(modalities, absent=absent)
    if any(objective.needs_views == 2 for objective in toy.objectives):
        for row, sample in enumerate(samples):
            sample.set_metainfo(dict(view=row // 4))
    return toy.loss(inputs, samples)
