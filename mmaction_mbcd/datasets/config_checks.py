"""What is wrong with the configuration of a dataset, said all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .multimodal_dataset import MultiModalDataset

SAMPLINGS = ("repaired", "published")
CHOICES = {
    "use": ("train", "val", "test", "in_domain", "held_out"),
    "eval_split": ("full", "test"),
    "on_error": ("raise", "skip"),
    "overlap": ("keep", "drop"),
    "sampling": SAMPLINGS,
    "views": (1, 2),
}


def refuse_wrong_config(
    dataset: MultiModalDataset,
    pipelines: Mapping[str, Sequence],
    metainfo: Mapping[str, Sequence[str]],
    named: bool,
    test_mode: bool | None,
) -> None:
    """Refuses settings that cannot work, or that contradict each other.

    Args:
        dataset: With its settings as attributes.
        pipelines: As they were given.
        metainfo: All domains and classes that the dataset has.
        named: Whether a target or sources were given.
        test_mode: As it was given.

    Raises:
        ValueError: With one sentence for each fault.
    """
    problems = [
        *_choice_problems(dataset, test_mode),
        *_modality_problems(dataset, pipelines),
        *_domain_problems(dataset, metainfo["domains"], named),
        *_class_problems(dataset, metainfo["classes"]),
    ]
    if problems:
        raise ValueError(
            f"{type(dataset).__name__} cannot be built:\n  " + "\n  ".join(problems)
        )


def _choice_problems(
    dataset: MultiModalDataset, test_mode: bool | None
) -> Iterator[str]:
    for name, allowed in CHOICES.items():
        value = getattr(dataset, name)
        if value not in allowed:
            yield f"{name} must be one of {list(allowed)}, got {value!r}"
    if dataset.views == 2 and dataset.use != "train":
        yield f"views=2 belongs to use='train', got use={dataset.use!r}"
    if dataset.watch_target and dataset.use != "val":
        yield (
            f"watch_target belongs to use='val', got use={dataset.use!r}; the target "
            "is never trained on"
        )
    for name in ("absent_warning", "max_skipped"):
        value = getattr(dataset, name)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            yield f"{name} is a share of the clips, from 0 to 1; got {value!r}"
    limit = dataset.read_timeout
    if limit is not None and not limit > 0:
        yield f"read_timeout is in seconds, or None for no limit; got {limit!r}"
    if test_mode is not None and test_mode != (dataset.use != "train"):
        yield f"test_mode={test_mode} contradicts use={dataset.use!r}; leave it out"


def _modality_problems(
    dataset: MultiModalDataset, pipelines: Mapping[str, Sequence]
) -> Iterator[str]:
    if not dataset.modalities:
        yield f"no modality in use; pipelines has {list(pipelines)}"
    named = (*pipelines, *dataset.modalities, *dataset.optional_modalities)
    for name in dict.fromkeys(named):
        if name not in dataset.MODALITY_TYPES:
            known = list(dataset.MODALITY_TYPES)
            yield f"unknown modality {name!r}; known are {known}"
        elif name in dataset.modalities and name not in pipelines:
            yield f"modality {name!r} has no pipeline; pipelines has {list(pipelines)}"
    yield from _repeated(dataset, "modalities")


def _class_problems(
    dataset: MultiModalDataset, classes: Sequence[str]
) -> Iterator[str]:
    for name in dataset.held_out_classes:
        if name not in classes:
            yield f"unknown class {name!r} in held_out_classes; known are {[*classes]}"
    if dataset.use == "held_out" and not dataset.held_out_classes:
        yield "use='held_out' needs held_out_classes"


def _domain_problems(
    dataset: MultiModalDataset, domains: Sequence[str], named: bool
) -> Iterator[str]:
    for kind in ("sources", "targets"):
        for domain in getattr(dataset, kind):
            if domain not in domains:
                yield (
                    f"unknown domain {domain!r} in {kind}; known are {list(domains)}"
                )
        yield from _repeated(dataset, kind)
    for domain in dict.fromkeys((*dataset.sources, *dataset.targets)):
        if domain in dataset.modalities:
            yield (
                f"{domain!r} names a domain and a modality, whose accuracies would "
                "have one name (source/video/top1): rename the domain"
            )
    for domain in dataset.targets:
        if domain in dataset.sources:
            yield (
                f"target {domain!r} is among the sources {list(dataset.sources)}; the "
                "target must be unseen"
            )
    if not dataset.sources and dataset.use not in ("test", "held_out"):
        yield f"use={dataset.use!r} needs at least one source"
    needs = dataset.use in ("test", "held_out") or dataset.watch_target
    if not dataset.targets and needs:
        yield (
            "use='test', use='held_out' and watch_target need a target; choose among "
            f"{list(domains)}"
        )
    if not named:
        yield (
            "neither `target` nor `sources` is given: name the unseen domain, or "
            f"the training domains, among {list(domains)}"
        )


def _repeated(dataset: MultiModalDataset, kind: str) -> Iterator[str]:
    for name, count in Counter(getattr(dataset, kind)).items():
        if count > 1:
            yield f"{name!r} stands {count} times in {kind}"


def check_order(pipelines: Mapping[str, Sequence]) -> None:
    """A transform that reads another modality must come after it.

    Args:
        pipelines: ``{modality: transforms}`` in the order in which they run.

    Raises:
        ValueError: If it comes before.
    """
    order = list(pipelines)
    for place, modality in enumerate(order):
        for transform in pipelines[modality]:
            reads = getattr(transform, "reads_from", ())
            if not reads or set(reads) & set(order[:place]):
                continue
            for other in (m for m in order[place + 1 :] if m in reads):
                raise ValueError(
                    f"{type(transform).__name__} of {modality!r} reads {other!r}, "
                    f"which is loaded after it: put {other!r} before {modality!r} in "
                    f"modalities {order}"
                )
