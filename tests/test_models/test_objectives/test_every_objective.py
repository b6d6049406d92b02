"""What holds for every objective: missing modalities, gradients, bfloat16, names."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmaction.registry import MODELS

from helpers.objectives import (
    METHODS,
    MISSING,
    NAMES,
    OBJECTIVES,
    WIDTHS,
    build,
    close,
    outputs_of,
    run,
    step,
    toy_of,
    toy_step,
)
from mmaction_mbcd.models import objectives
from mmaction_mbcd.models.layers import ModalityProjectors
from toys import total

PROJECTING = [
    name
    for name in OBJECTIVES
    if isinstance(
        getattr(build(name, NAMES[:2]), "projectors", None), ModalityProjectors
    )
]


@pytest.mark.parametrize("name", PROJECTING)
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
                    part.reset_running_stats()  # the teacher uses them
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
def test_every_parameter_gets_a_finite_gradient(name, case):
    kwargs = dict(CASES[case])
    if "count" in kwargs:
        kwargs["count"] *= MODELS.get(name).needs_views
    objective = build(name, NAMES[:3])
    for special in ("", "one class", "zero features"):
        check_gradients(objective, kwargs, special, whole=case == "full")
    if objective.needs_domains:
        objective = build(name, NAMES[:3], domains=1)
        check_gradients(objective, kwargs, "one domain", whole=False)


def check_gradients(objective, kwargs, special, whole):
    objective.zero_grad()
    outputs = outputs_of(NAMES[:3], views=objective.needs_views, **kwargs)
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
        if whole and not special and p.ndim == 2:
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
def test_bfloat16(name, absent):
    """Under autocast, and as a whole module, against float32."""
    views = MODELS.get(name).needs_views
    torch.manual_seed(1)
    exact = build(name, NAMES[:3], dtype=torch.float32)
    values = []
    for module, autocast in (
        (copy.deepcopy(exact), False),
        (copy.deepcopy(exact), True),
        (exact.bfloat16(), False),
    ):
        own = torch.bfloat16 if module is exact else torch.float32
        outputs = outputs_of(NAMES[:3], absent=absent, views=views, dtype=own)
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = step(module, outputs)
        assert all(torch.isfinite(v) for v in losses.values())
        total(losses).backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())
        values.append({k: v.item() for k, v in losses.items() if "loss" in k})
    full, *rounded = values
    for half in rounded:
        for key, value in half.items():
            # Rounded inputs move a value by some per cent, not by factors.
            assert value == pytest.approx(full[key], rel=0.15, abs=0.15), key


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("modalities", [("smell", "touch"), ("a", "b", "c", "d", "e")])
def test_modalities_of_any_name_and_number(name, modalities, monkeypatch):
    for m in modalities:
        monkeypatch.setitem(WIDTHS, m, 8)
    _, _, losses = run(name, modalities)
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_modality_works_or_is_refused_by_name(name):
    try:
        _, _, losses = run(name, ["video"])
    except ValueError as error:
        assert re.search(r"compares modalities.*two; got \['video'\]", str(error))
        assert name in str(error)
    else:
        assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("modalities", "absent"),
    [(NAMES[:3], None), (NAMES[:2], None), (NAMES[:3], {"audio": list(range(8))})],
)
def test_methods_train_every_part_of_a_recognizer(name, modalities, absent):
    toy = toy_of(name, modalities, extra=[dict(type="MaximumEntropyRegularizer")])
    losses = toy_step(toy, modalities, absent)
    assert all(torch.isfinite(v).all() for v in losses.values())
    total(losses).backward()
    for key, p in toy.named_parameters():
        assert (p.grad is not None) == p.requires_grad, key
        assert p.grad is None or torch.isfinite(p.grad).all(), key
        if p.grad is not None and p.ndim > 1 and absent is None:
            assert p.grad.abs().max() > 0, key


def test_every_method_has_a_file_of_objectives_and_a_file_of_tests():
    folder = Path(objectives.__file__).parent
    found = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    tests = {
        path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("*.py")
    }
    registered = {MODELS.get(n).__module__.rpartition(".")[2] for n in OBJECTIVES}
    assert found == registered == tests - {"every_objective"}
