"""What a model said of every clip, kept in one small file.

Tables, intervals, calibration and later questions are answered from such files; no
checkpoint is evaluated twice.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy
from mmaction.registry import METRICS
from mmengine.evaluator import BaseMetric

_FORMAT = 1  # of the file


@dataclass
class Predictions:
    """One evaluation, clip by clip, in the order of the dataset.

    Attributes:
        sample_ids: ``(N,)`` str.
        domains: ``(N,)`` str.
        roles: ``(N,)`` str, ``'source'`` or ``'target'``.
        labels: ``(N,)`` class indices; -1 for a clip that was skipped.
        skipped: ``(N,)`` bool, clips that could not be read.
        present: ``{modality: (N,) bool}``, which clips have it.
        logits: ``{head: (N, C) float32}``. ``''`` is the fused head, ``'video'`` that
            of a modality, ``'student'`` and ``'student/video'`` those of the model that
            is reported beside. A row is NaN where a head says nothing: the clip was
            skipped, or lacks the head's modality.
        classes: ``C`` names.
        facts: What is known of the run, JSON values: checkpoint, experiment, seed,
            epoch, weights.
    """

    sample_ids: np.ndarray
    domains: np.ndarray
    roles: np.ndarray
    labels: np.ndarray
    skipped: np.ndarray
    present: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]
    classes: tuple[str, ...]
    facts: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those of the data."""
        return tuple(self.present)

    def _of(self, head: str) -> np.ndarray:
        if head not in self.logits:
            raise ValueError(
                f"no head {head!r} among the predictions; there are "
                f"{[name or 'fused' for name in self.logits]}"
            )
        return self.logits[head]

    def known(self, head: str = "") -> np.ndarray:
        """``(N,)`` bool, clips of which the head says something."""
        return ~np.isnan(self._of(head)).any(axis=1)

    def probabilities(self, head: str = "") -> np.ndarray:
        """``(N, C)`` float64; NaN where the head says nothing."""
        return scipy.special.softmax(self._of(head).astype(np.float64), axis=1)

    def predicted(self, head: str = "") -> np.ndarray:
        """``(N,)`` class of the highest score, -1 where the head says nothing."""
        known, logits = self.known(head), self._of(head)
        chosen = np.argmax(np.where(known[:, None], logits, 0), axis=1)
        return np.where(known, chosen, -1)

    def correct(self, head: str = "") -> np.ndarray:
        """``(N,)`` bool; a skipped clip, or one that lacks the modality, is False."""
        return self.known(head) & (self.predicted(head) == self.labels)

    def select(self, mask: np.ndarray) -> Predictions:
        """Those of some clips.

        Args:
            mask: ``(N,)`` bool, or indices.
        """
        return Predictions(
            *(getattr(self, name)[mask] for name in _COLUMNS),
            present={m: x[mask] for m, x in self.present.items()},
            logits={head: x[mask] for head, x in self.logits.items()},
            classes=self.classes,
            facts=self.facts,
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes them as a compressed ``.npz`` without pickles, all or nothing."""
        known = dict(
            format=_FORMAT,
            modalities=list(self.present),
            heads=list(self.logits),
            classes=list(self.classes),
            facts=self.facts,
        )
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        arrays |= {f"present_{i}": x for i, x in enumerate(self.present.values())}
        arrays |= {f"logits_{i}": x for i, x in enumerate(self.logits.values())}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            np.savez_compressed(file, known=np.array(json.dumps(known)), **arrays)
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: If the file is damaged, or of another format.
            FileNotFoundError: If there is none.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            known = json.loads(str(arrays["known"]))
            if known["format"] != _FORMAT:
                raise ValueError(f"format {known['format']}, not {_FORMAT}")
            heads, modalities = (
                enumerate(known["heads"]),
                enumerate(known["modalities"]),
            )
            return cls(
                *(arrays[name] for name in _COLUMNS),
                present={m: arrays[f"present_{i}"] for i, m in modalities},
                logits={head: arrays[f"logits_{i}"] for i, head in heads},
                classes=tuple(known["classes"]),
                facts=known["facts"],
            )
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            KeyError,
            ValueError,
        ) as error:
            raise ValueError(
                f"{path} holds no predictions that can be read ({error}): delete it, "
                "and evaluate the checkpoint again"
            ) from error


_COLUMNS = ("sample_ids", "domains", "roles", "labels", "skipped")


def collect(
    samples: Sequence[Mapping], classes: Sequence[str], facts: Mapping | None = None
) -> Predictions:
    """The predictions of data samples that a recognizer has scored.

    Args:
        samples: With ``gt_label`` and, as metainfo, ``sample_id``, ``domain``,
            ``role``, ``present`` and ``logits`` ``{head: (C,)}``; ``skipped`` where a
            sample could not be read: ``to_dict()`` of data samples.
        classes: Their names.
        facts: See :class:`Predictions`.

    Raises:
        ValueError: If there are no samples, or they have no logits.
    """
    if not samples:
        raise ValueError("no sample was evaluated: there are no predictions to keep")
    if bare := [s for s in samples if not s.get("logits")]:
        raise ValueError(
            f"{len(bare)} of {len(samples)} samples have no logits, such as "
            f"{bare[0].get('sample_id')!r}: the model must be a MultiModalRecognizer"
        )
    skipped = np.array([bool(s.get("skipped")) for s in samples])
    labels = np.array([int(s["gt_label"]) for s in samples], dtype=np.int64)
    modalities = list(dict.fromkeys(m for s in samples for m in s["present"]))
    present = {
        m: np.array([bool(s["present"].get(m)) for s in samples]) for m in modalities
    }
    heads = list(dict.fromkeys(head for s in samples for head in s["logits"]))
    logits = {}
    for head in heads:
        rows = np.stack([np.asarray(s["logits"][head], np.float32) for s in samples])
        modality = head.rpartition("/")[2]
        silent = skipped | ~present.get(modality, ~skipped)
        logits[head] = np.where(silent[:, None], np.float32("nan"), rows)
    return Predictions(
        sample_ids=np.array([str(s["sample_id"]) for s in samples]),
        domains=np.array([str(s["domain"]) for s in samples]),
        roles=np.array([str(s["role"]) for s in samples]),
        labels=np.where(skipped, -1, labels),
        skipped=skipped,
        present=present,
        logits=logits,
        classes=tuple(map(str, classes)),
        facts=dict(facts or {}),
    )


@METRICS.register_module()
class PredictionFile(BaseMetric):
    """Keeps what the model said of every clip, see :class:`Predictions`.

    It stands beside :class:`.DomainAccuracy` in ``test_evaluator`` and adds no metric.

    Args:
        path: The ``.npz`` file to write.
        facts: What is known of the run.
        collect_device: Of :class:`mmengine.evaluator.BaseMetric`.
        prefix: Of the same.
    """

    default_prefix = None

    def __init__(
        self,
        path: str,
        facts: Mapping | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.path, self.facts = path, dict(facts or {})

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keeps the scores of each sample."""
        keys = ("gt_label", "sample_id", "domain", "role", "present", "logits")
        for sample in data_samples:
            kept = {key: sample[key] for key in keys if key in sample}
            self.results.append(kept | dict(skipped=bool(sample.get("skipped"))))

    def compute_metrics(self, results: list[dict]) -> dict:
        """Writes the file. MMEngine calls it on the main process."""
        classes = (self.dataset_meta or {}).get("classes", ())
        collect(results, classes, self.facts).save(self.path)
        return {}
