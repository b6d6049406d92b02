"""What makes a model's config impossible, alone or with the data it is to train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from .inner_step import BN_SECOND_PASS

if TYPE_CHECKING:
    from .assembly import RecognizerParts

INNER_STEP_KEYS = {"scope", "bn_second_pass"}


def check_modalities(modalities: Sequence[str], encoders: Mapping[str, dict]) -> None:
    """Refuses modalities that have no encoder, or that are named twice.

    Raises:
        ValueError: Saying which.
    """
    unknown = [m for m in modalities if m not in encoders]
    if unknown:
        raise ValueError(
            f"model.modalities names {unknown}, for which model.encoders has no "
            f"encoder; it has {list(encoders)}"
        )
    if not modalities or len(set(modalities)) != len(modalities):
        raise ValueError(
            "model.modalities must name at least one modality and none twice; "
            f"got {list(modalities)}"
        )


def model_problems(model: RecognizerParts, inner_step: dict | None) -> list[str]:
    """Parts of a model that do not fit together.

    Args:
        model: With all its parts built.
        inner_step: As the config has it.
    """
    return [
        *_neck_problems(model),
        *_objective_problems(model),
        *(() if inner_step is None else _inner_step_problems(model, inner_step)),
    ]


def _trains_heads(model: RecognizerParts) -> bool:
    return len(model.unimodal_heads) > 0 and not model.probe


def _neck_problems(model: RecognizerParts) -> Iterator[str]:
    if not model.neck.needs_confidence:
        return
    if len(model.modalities) < 2:
        yield (
            "adaptive modality dropout compares modalities and needs at "
            f"least two; got {model.modalities}: use ConcatFusion"
        )
    if not _trains_heads(model):
        yield (
            f"{type(model.neck).__name__} compares unimodal confidences and "
            "needs trained unimodal heads: set model.unimodal_head and "
            "probe=False"
        )


def _objective_problems(model: RecognizerParts) -> Iterator[str]:
    for objective in model.objectives:
        name = type(objective).__name__
        if objective.needs_unimodal and not _trains_heads(model):
            yield (
                f"{name} trains unimodal heads: set model.unimodal_head and probe=False"
            )
        if objective.needs_heads and not len(model.unimodal_heads):
            yield (
                f"{name} compares unimodal confidences: set model.unimodal_head "
                "(probe=True will do)"
            )


def _inner_step_problems(model: RecognizerParts, inner_step: dict) -> Iterator[str]:
    if not _trains_heads(model):
        yield (
            "the inner step follows the unimodal losses: set model.unimodal_head "
            "and probe=False"
        )
    if unknown := sorted(inner_step.keys() - INNER_STEP_KEYS):
        yield (
            f"inner_step has unknown keys {unknown}; it takes scope and "
            "bn_second_pass (alpha and order belong to optim_wrapper)"
        )
    if model.inner_step.bn_second_pass not in BN_SECOND_PASS:
        yield (
            f"inner_step.bn_second_pass must be {' or '.join(BN_SECOND_PASS)}; got "
            f"{model.inner_step.bn_second_pass!r}"
        )
    if model.inner_step.is_empty:
        yield (
            f"inner_step.scope={model.inner_step.scope!r} matches no trainable "
            "encoder parameter"
        )


def refuse_checkpointing(model: RecognizerParts) -> None:
    """Activation checkpointing would recompute at theta what ran at theta'.

    Raises:
        ValueError: Naming the modules that recompute.
    """
    found = []
    for m, encoder in model.encoders.items():
        stem = tuple(encoder.stem_modules())
        for name, module in encoder.named_modules():
            # MMEngine's turn_on_activation_checkpointing replaces forward.
            wrapped = getattr(module, "with_cp", False) or "forward" in vars(module)
            if wrapped and not (stem and name.startswith(stem)):
                found.append(f"encoders.{m}.{name}")
    if found:
        raise ValueError(
            "activation checkpointing on branches that the inner step adapts "
            "would recompute them with other weights and give wrong gradients, "
            f"silently. Turn it off for {', '.join(found[:3])}"
            + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        )


def training_problems(
    model: RecognizerParts, dataset: object, optim_wrapper: object
) -> list[str]:
    """What the model needs of the data and of the optimizer wrapper, and lacks.

    Args:
        model: The recognizer, with what the hooks lend it.
        dataset: Of the training; attributes that it does not have are not checked.
        optim_wrapper: MMEngine's.
    """
    return [
        *_step_problems(model, optim_wrapper),
        *_class_problems(model, dataset),
        *_domain_problems(model, dataset),
        *_modality_problems(model, dataset),
        *_sync_problems(model, dataset),
    ]


def _requiring(model: RecognizerParts, what: str) -> str:
    """Names of the objectives that have a flag, or want an argument filled in."""
    return ", ".join(
        type(objective).__name__
        for objective in model.objectives
        if what in objective.filled_in or getattr(objective, what, False)
    )


def _step_problems(model: RecognizerParts, optim_wrapper: object) -> Iterator[str]:
    if model.inner_step is not None and not hasattr(optim_wrapper, "inner_update"):
        yield (
            "model.inner_step needs optim_wrapper.type MBCDOptimWrapper (or "
            f"AmpMBCDOptimWrapper); got {type(optim_wrapper).__name__}"
        )
    requiring = _requiring(model, "needs_teacher")
    if requiring and not model.has_teacher:
        yield (
            f"{requiring} distills from a teacher, but none is bound: add "
            "dict(type='TeacherEMAHook') to custom_hooks"
        )


def _class_problems(model: RecognizerParts, dataset: object) -> Iterator[str]:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if classes is not None and model.num_classes not in (None, len(classes)):
        yield (
            f"model.num_classes is {model.num_classes}, but the dataset has "
            f"{len(classes)} classes ({', '.join(map(str, classes))})"
        )


def _domain_problems(model: RecognizerParts, dataset: object) -> Iterator[str]:
    sources = getattr(dataset, "sources", None)
    requiring = _requiring(model, "num_domains")
    if sources is not None and requiring and model.num_domains != len(sources):
        yield (
            f"{requiring} tells source domains apart: model.num_domains is "
            f"{model.num_domains}, but the dataset trains on {len(sources)} "
            f"({list(sources)}). tools/train.py --sources sets both"
        )


def _modality_problems(model: RecognizerParts, dataset: object) -> Iterator[str]:
    given = getattr(dataset, "modalities", None)
    if given is not None and set(model.modalities) - set(given):
        yield (
            f"the model reads {model.modalities}, but the dataset yields "
            f"{list(given)}: set model.modalities and the dataloaders' "
            "dataset.modalities alike (tools/train.py --modalities does both)"
        )


def _sync_problems(model: RecognizerParts, dataset: object) -> Iterator[str]:
    """SyncBatchNorm waits for all processes, also for those that have nothing."""
    optional = set(getattr(dataset, "optional_modalities", ())) & set(model.modalities)
    may_lack = optional or getattr(dataset, "on_error", "raise") == "skip"
    if may_lack and (name := _synced(model.objectives)):
        yield (
            f"objectives have SyncBatchNorm ({name}), and a process with fewer "
            "than two valid samples of a modality would not take part in it, so all "
            "would wait for ever: leave sync_bn out, or set the datasets' "
            "optional_modalities=() and on_error='raise'"
        )
    if synced := [m for m in sorted(optional) if _synced(model.encoders[m])]:
        yield (
            f"the encoders of {synced} have SyncBatchNorm, and a process whose batch "
            "lacks the modality would not take part in it, so all would wait for "
            "ever: leave sync_bn out, or set the datasets' optional_modalities=()"
        )


def _synced(module: nn.Module) -> str:
    """Name of the first SyncBatchNorm below a module, or ``''``."""
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm):
            return name or type(part).__name__
    return ""
