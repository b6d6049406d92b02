"""Passes over the data: what each asks, and the files that keep the answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch.utils.data import DataLoader

from ... import __version__
from ...cli.data import innermost_datasets
from ...datasets import MultiModalDataset
from ...errors import UsageError
from ...evaluation.predictions import Predictions
from ...progress import Meter
from ..subsets import predict_subsets
from ..trained import TrainedModel

CLEAN = "clean"
"""Name of the predictions of the data as they are, with all modalities."""


@dataclass(frozen=True)
class Reading:
    """One pass over some data, and what is asked in it.

    Attributes:
        name: For the progress bar.
        loader: Makes the batches.
        clips: How many there are.
        facts: What is read, as JSON values: predictions of other facts are others.
        subsets: ``{name of the predictions: modalities that are kept}``.
    """

    name: str
    loader: Callable[[], DataLoader]
    clips: int
    facts: Mapping
    subsets: Mapping[str, tuple[str, ...]]


@dataclass
class Subject:
    """A model and the data that it is evaluated on.

    Attributes:
        trained: The model.
        dataset: That of the config's test split.
        identity: What all predictions of one evaluation share, as JSON values.
    """

    trained: TrainedModel
    dataset: MultiModalDataset = field(init=False)
    identity: dict = field(init=False)

    def __post_init__(self) -> None:
        self.dataset = self.trained.loader().dataset
        if not isinstance(self.dataset, MultiModalDataset):
            raise UsageError(
                "the evaluation needs a MultiModalDataset in test_dataloader; the "
                f"config has {type(self.dataset).__name__}"
            )
        config = self.trained.config
        self.identity = dict(
            weights=_digest_of_weights(self.trained),
            model=_digest(config.model.to_dict()),
            data=_digest(_without_place(config.test_dataloader["dataset"])),
            clips=digest_of_clips(self.dataset),
            version=__version__,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of the model, in the order of fusion."""
        return self.trained.modalities

    @property
    def pipelines(self) -> dict[str, list]:
        """``{modality: transforms}`` of the test data, as the config has them."""
        (dataset,) = innermost_datasets(self.trained.config.test_dataloader["dataset"])
        return {m: list(dataset["pipelines"][m]) for m in self.modalities}

    def kind(self, modality: str) -> str:
        """MMAction2's kind of a modality: ``'RGB'``, ``'Flow'`` or ``'Audio'``."""
        return self.dataset.MODALITY_TYPES[modality]

    def clean(self, **subsets: tuple[str, ...]) -> Reading:
        """The data as they are.

        Args:
            subsets: ``{name of the predictions: modalities that are kept}``; the
                predictions with all modalities, ``clean``, are always asked for.
        """
        subsets = {CLEAN: self.modalities} | subsets
        return Reading(CLEAN, self.trained.loader, len(self.dataset), {}, subsets)

    def changed(self, name: str, modality: str, pipeline: Sequence) -> Reading:
        """The data with another pipeline of one modality; the others stay clean.

        Args:
            name: Of the predictions.
            modality: Whose pipeline it is.
            pipeline: Transforms, as a config has them.
        """
        pipelines = self.pipelines | {modality: list(pipeline)}
        return Reading(
            name,
            lambda: self.trained.loader(pipelines=pipelines),
            len(self.dataset),
            dict(modality=modality, pipeline=_digest(pipeline)),
            {name: self.modalities},
        )


def merged(readings: Iterable[Reading]) -> list[Reading]:
    """Readings of one name become one, which asks for what each asks."""
    found: dict[str, Reading] = {}
    for reading in readings:
        if reading.name in found:
            subsets = {**found[reading.name].subsets, **reading.subsets}
            reading = replace(reading, subsets=subsets)
        found[reading.name] = reading
    return list(found.values())


def predict_all(
    subject: Subject, readings: Iterable[Reading], folder: Path
) -> dict[str, Predictions]:
    """Reads what has not been read yet.

    Every pass leaves its predictions in ``folder``, so that an evaluation that was
    stopped goes on behind the last finished pass.

    Args:
        subject: The model and its data.
        readings: Those of all suites.
        folder: Of the files; ``<name>.npz`` each.

    Returns:
        ``{name: predictions}``.

    Raises:
        UsageError: If the folder has predictions of another evaluation.
    """
    found: dict[str, Predictions] = {}
    todo = []
    for reading in merged(readings):
        facts = _facts(subject, reading)
        missing = {}
        for name, kept in reading.subsets.items():
            if (path := folder / f"{name}.npz").exists():
                found[name] = _load(path, facts)
            else:
                missing[name] = kept
        if missing:
            todo.append(replace(reading, subsets=missing))
    for name, predictions in _read(subject, todo):
        predictions.save(folder / f"{name}.npz")
        found[name] = predictions
    return found


def _read(
    subject: Subject, readings: Sequence[Reading]
) -> Iterable[tuple[str, Predictions]]:
    """Each answer as soon as its pass has ended."""
    if not readings:
        return
    total = sum(reading.clips for reading in readings)
    workers = subject.trained.config.test_dataloader.get("num_workers", 0)
    with Meter("evaluating", "clips", total, max(workers, 1)) as meter:
        for place, reading in enumerate(readings, 1):
            meter.title = f"pass {place} of {len(readings)}, {reading.name}"
            answers = predict_subsets(
                subject.trained, reading.loader(), reading.subsets, meter.add
            )
            facts = _facts(subject, reading)
            for name, predictions in answers.items():
                predictions.facts = predictions.facts | dict(evaluation=facts)
                yield name, predictions


def _facts(subject: Subject, reading: Reading) -> dict:
    return subject.identity | dict(reading=_plain(reading.facts))


def _load(path: Path, facts: Mapping) -> Predictions:
    try:
        predictions = Predictions.load(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    kept = predictions.facts.get("evaluation") or {}
    if other := [name for name in facts if kept.get(name) != facts[name]]:
        raise UsageError(
            f"{path} is of another evaluation ({', '.join(other)} differ): one folder "
            "holds the predictions of one checkpoint, config and set of options. Give "
            "another --out, or delete that folder"
        )
    return predictions


# ------------------------------------------------------------------------ identity


def _plain(value: object) -> object:
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _digest(value: object) -> str:
    text = json.dumps(value, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_place(dataset: Mapping) -> list[dict]:
    """Settings of the datasets but their folder: its clips are compared instead."""
    return [
        {key: value for key, value in each.items() if key != "data_root"}
        for each in innermost_datasets(dataset)
    ]


def digest_of_clips(dataset: MultiModalDataset) -> str:
    """A short text that is equal for equal clips, domains and labels, in one order."""
    rows = (dataset.get_data_info(i) for i in range(len(dataset)))
    return _digest([[row["sample_id"], row["domain"], row["label"]] for row in rows])


def _digest_of_weights(trained: TrainedModel) -> str:
    digest = hashlib.sha256()
    for name, value in trained.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
