"""Whether a checkpoint is of this model and of this experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import CheckpointError


def module_of(runner: Runner) -> nn.Module:
    """The model, out of any wrapper for several processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


# --------------------------------------------------------------- the same model


@dataclass
class Fit:
    """How the weights of a checkpoint fit a model; names of parameters and buffers.

    Attributes:
        matched: In both, of one shape.
        missing: Of the model alone; they stay as they were initialised.
        unexpected: Of the checkpoint alone; they are not loaded.
        other_shape: In both, of different shapes; they are not loaded.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every weight of the one is in the other."""
        return not (self.missing or self.unexpected or self.other_shape)

    @property
    def counts(self) -> dict[str, int]:
        """``{'matched': 120, ...}``."""
        return {name: len(keys) for name, keys in asdict(self).items()}

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.other_shape)
        parts = [f"{len(self.matched)} of the model's {total} weights are in it"]
        for keys, words in (
            (self.missing, "missing"),
            (self.unexpected, "unexpected"),
            (self.other_shape, "of another shape"),
        ):
            if keys:
                parts.append(f"{len(keys)} {words} (such as {keys[0]})")
        return ", ".join(parts)


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """Compares a checkpoint's weights with a model's."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own, found = model.state_dict(), Fit()
    for name, value in own.items():
        if name not in state:
            found.missing.append(name)
        elif getattr(state[name], "shape", None) != value.shape:
            found.other_shape.append(name)
        else:
            found.matched.append(name)
    found.unexpected = [name for name in state if name not in own]
    return found


def refuse_other_weights(found: Fit, what: str, partial: bool) -> None:
    """Refuses a checkpoint that would leave weights at random.

    Args:
        found: From :func:`fit`.
        what: Which config reads which checkpoint.
        partial: Whether a part is enough. None of them never is.

    Raises:
        CheckpointError: With the counts.
    """
    if not found.matched:
        raise CheckpointError(
            f"{what}: no weight fits ({found}). It is a checkpoint of another model"
        )
    if not found.complete and not partial:
        raise CheckpointError(
            f"{what}: the weights do not fit, {found}. Use the config and the options "
            "(--modalities, --sources) that it was trained with; for part of the "
            "weights, tools/test.py --allow-partial"
        )


# ---------------------------------------------------------- the same experiment

_TESTED = ("method", "modalities", "classes", "held_out_classes")
_RESUMED = ("dataset", "sources", "target", *_TESTED)


def experiment(runner: Runner, dataset: object) -> dict[str, object]:
    """What a run is about, see :func:`experiment_of`."""
    return experiment_of(runner.cfg, module_of(runner), dataset)


def experiment_of(
    config: Mapping, model: nn.Module, dataset: object
) -> dict[str, object]:
    """Method, dataset, sources, target, modalities, classes, and those held out.

    Args:
        config: The whole config; it names the method.
        model: Knows its modalities.
        dataset: Knows its domains and classes.
    """
    facts = getattr(dataset, "metainfo", None) or {}
    return dict(
        method=(config.get("method") or {}).get("name"),
        dataset=type(dataset).__name__,
        sources=list(facts.get("sources") or ()),
        target=list(facts.get("target") or ()),
        modalities=list(getattr(model, "modalities", ())),
        classes=[str(each) for each in facts.get("classes") or ()],
        held_out_classes=sorted(facts.get("held_out_classes") or ()),
    )


def _said(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{len(value)} classes" if len(value) > 8 else ", ".join(value) or "none"


def _differences(
    saved: Mapping[str, object], now: Mapping[str, object], keys: Sequence[str]
) -> Iterator[str]:
    for key in keys:
        if key in saved and saved[key] != now[key]:
            was, is_ = _said(saved[key]), _said(now[key])
            yield f"its {key}: {was}" + (f", here {is_}" if was != is_ else " (others)")


def refuse_other_resume(
    saved: Mapping[str, object], now: Mapping[str, object], what: str
) -> None:
    """Refuses to go on with another experiment than the checkpoint's.

    Raises:
        CheckpointError: Naming what differs.
    """
    if found := list(_differences(saved, now, _RESUMED)):
        raise CheckpointError(
            f"{what} cannot be resumed: it is of another experiment ("
            + "; ".join(found)
            + "). Resume it with its own config and options; to start from its "
            "weights alone, use load_from without resume"
        )


def refuse_leak(
    saved: Mapping[str, object], now: Mapping[str, object], use: str, what: str
) -> None:
    """Refuses a test whose numbers would not be what they are called.

    Args:
        saved: The experiment of the checkpoint.
        now: That of the test.
        use: The test data's: ``'test'`` (unseen domains), ``'in_domain'`` or ``'val'``.
        what: Which config tests which checkpoint.

    Raises:
        CheckpointError: If a target was trained on, a source was not, or classes,
            modalities or method are not the checkpoint's.
    """
    problems = list(_differences(saved, now, _TESTED))
    sources = set(saved.get("sources") or ())
    if use == "test" and (seen := sorted(sources & set(now["target"]))):
        problems.append(
            f"it was trained on {', '.join(seen)}, which is tested here as unseen "
            f"(its sources: {', '.join(saved['sources'])}; give its target with "
            "--target, or --in-domain for the sources' held-out clips)"
        )
    if use in ("in_domain", "val") and (new := sorted(set(now["sources"]) - sources)):
        problems.append(
            f"it was not trained on {', '.join(new)}, which is evaluated here as a "
            f"source (its sources: {', '.join(saved['sources'])})"
        )
    if problems:
        raise CheckpointError(f"{what}: " + "; ".join(problems))


def ignored_settings(runner: Runner, checkpoint: Mapping[str, object]) -> list[str]:
    """Settings of the config that a resumed run does not follow, each as a sentence.

    Seed and optimizer settings are the checkpoint's.
    """
    said = []
    was = (checkpoint.get("meta") or {}).get("seed")
    now = runner._randomness_cfg.get("seed")
    if now is not None and was is not None and now != was:
        said.append(f"seed {now} is ignored: the run goes on with its own, {was}")
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    groups = (checkpoint.get("optimizer") or {}).get("param_groups") or ()
    if optimizer is None:
        return said
    for key in optimizer.defaults:
        # What a scheduler moves starts from initial_lr.
        new = {str(g[key]) for g in optimizer.param_groups if key in g}
        old = {str(g.get(f"initial_{key}", g[key])) for g in groups if key in g}
        if old and new and old != new:
            said.append(
                f"{key} {', '.join(sorted(new))} is ignored: the run goes on with "
                f"{', '.join(sorted(old))}"
            )
    return said


# ------------------------------------------------------------------ only numbers


def not_finite(state: Mapping[str, Tensor], parameters: set[str]) -> list[str]:
    """Names of weights that are not finite.

    A buffer may hold infinities (a mask); NaN is in none.
    """
    return [
        name
        for name, value in state.items()
        if torch.is_tensor(value)
        and value.is_floating_point()
        and not (
            torch.isfinite(value).all()
            if name in parameters
            else not torch.isnan(value).any()
        )
    ]
