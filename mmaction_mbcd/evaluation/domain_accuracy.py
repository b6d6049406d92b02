"""Accuracy per role, domain and modality, also of a model reported beside."""

from collections.abc import Sequence

import numpy as np
import torch
from mmaction.registry import METRICS
from mmengine.evaluator import BaseMetric


@METRICS.register_module()
class DomainAccuracy(BaseMetric):
    """Top-1 accuracy of fused and single modalities, by domain.

    It reads of every data sample: ``gt_label``, ``sample_id``, ``domain``, ``role``,
    ``present`` ``{modality: bool}``, ``pred_score`` ``(C,)`` of the fused prediction,
    ``skipped`` (true for a sample that could not be read), and optionally
    ``pred_scores`` ``{name: (C,)}``, where a name is a modality, a model that is
    reported beside (``'student'``: its fused prediction) or both
    (``'student/video'``). Accuracies are fractions:

    ======================== ====================================================
    ``ROLE/top1``            of the fused prediction; ``ROLE`` is source or target
    ``ROLE/mean_class``      mean over the classes that occur of their accuracies
    ``ROLE/N``               number of evaluated samples
    ``ROLE/clips``           number of different ones, if it is not ``ROLE/N``
    ``ROLE/skipped``         samples that could not be read, if any; not in ``ROLE/N``
    ``ROLE/DOMAIN/top1, N``  of one domain: every source, and the targets if there
                             are several
    ``ROLE/MODALITY/top1``   of one modality, over the samples that have it
    ``ROLE/MODALITY/N``      their number, if it is not ``ROLE/N``
    ``student/...``          the same of the model beside
    ======================== ====================================================

    Only ``source/top1`` may select a model.

    Args:
        beside: Names of models that may be reported beside the evaluated one.
        collect_device: Of :class:`mmengine.evaluator.BaseMetric`.
        prefix: Put before every key.
    """

    default_prefix = None

    def __init__(
        self,
        beside: Sequence[str] = ("student", "teacher"),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.beside = tuple(beside)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Keeps label, domain and predicted classes of each sample.

        Raises:
            ValueError: If a score is not finite, or has a name that is unknown.
        """
        for sample in data_samples:
            present = sample["present"]
            facts = dict(
                sample_id=sample["sample_id"],
                domain=sample["domain"],
                role=sample["role"],
                present=dict(present),
                skipped=bool(sample.get("skipped")),
            )
            if facts["skipped"]:
                self.results.append(facts | dict(label=-1, predicted={}))
                continue
            scores = {("", ""): sample["pred_score"]}
            for name, score in sample.get("pred_scores", {}).items():
                model, modality = self._split(name, present)
                if present.get(modality, True):
                    scores[model, modality] = score
            self.results.append(
                facts
                | dict(
                    label=int(sample["gt_label"]),
                    predicted={
                        key: _predicted(score, "/".join(filter(None, key)), sample)
                        for key, score in scores.items()
                    },
                )
            )

    def _split(self, name: str, present: dict[str, bool]) -> tuple[str, str]:
        """``'student/video'`` -> ``('student', 'video')``; either may be empty."""
        model, _, modality = name.partition("/")
        if model in present and not modality:
            return "", model
        if model in self.beside and (not modality or modality in present):
            return model, modality
        raise ValueError(
            f"unknown score {name!r}: expected a modality of {list(present)}, a "
            f"model of {list(self.beside)}, or 'model/modality'"
        )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """The accuracies of the collected samples.

        Args:
            results: What :meth:`process` kept, of all processes.

        Raises:
            ValueError: If there are no samples, a score is missing for a sample that
                has the modality, or a domain has the name of a modality.
        """
        if not results:
            raise ValueError(
                "DomainAccuracy has no samples: the dataloader was empty, or no batch "
                "was processed before evaluate()"
            )
        modalities = list(dict.fromkeys(m for r in results for m in r["present"]))
        clash = {r["domain"] for r in results} & set(modalities)
        if clash:
            raise ValueError(
                f"{sorted(clash)} name both a domain and a modality; their accuracies "
                "would have one key"
            )
        keys = list(dict.fromkeys(k for r in results for k in r["predicted"]))
        metrics: dict[str, float] = {}
        for role in dict.fromkeys(r["role"] for r in results):
            everything = [r for r in results if r["role"] == role]
            chosen = [r for r in everything if not r["skipped"]]
            if not chosen:
                raise ValueError(
                    f"none of the {len(everything)} {role} samples could be read; the "
                    "warnings above name the files"
                )
            for model in dict.fromkeys(model for model, _ in keys):
                head = f"{model}/{role}" if model else role
                if (model, "") in keys:
                    metrics.update(self._fused(head, role, chosen, (model, "")))
                for modality in modalities:
                    if (model, modality) in keys:
                        having = [r for r in chosen if r["present"].get(modality)]
                        if not having:
                            continue
                        metrics[f"{head}/{modality}/top1"] = _top1(
                            having, (model, modality)
                        )
                        if len(having) != len(chosen):
                            metrics[f"{head}/{modality}/N"] = len(having)
            if len(everything) > len(chosen):
                metrics[f"{role}/skipped"] = len(everything) - len(chosen)
            clips = len({r["sample_id"] for r in chosen})
            if clips != len(chosen):
                metrics[f"{role}/clips"] = clips
        return metrics

    @staticmethod
    def _fused(
        head: str, role: str, chosen: list[dict], key: tuple[str, str]
    ) -> dict[str, float]:
        from sklearn.metrics import recall_score  # half a second: not to --help

        labels, predicted = _columns(chosen, key)
        metrics = {
            f"{head}/N": len(chosen),
            f"{head}/top1": _top1(chosen, key),
            f"{head}/mean_class": float(
                recall_score(
                    labels,
                    predicted,
                    labels=np.unique(labels),
                    average="macro",
                    zero_division=0,
                )
            ),
        }
        domains = list(dict.fromkeys(r["domain"] for r in chosen))
        if role == "source" or len(domains) > 1:
            for domain in domains:
                rows = [r for r in chosen if r["domain"] == domain]
                metrics[f"{head}/{domain}/top1"] = _top1(rows, key)
                metrics[f"{head}/{domain}/N"] = len(rows)
        return metrics


def _predicted(score: torch.Tensor, name: str, sample: dict) -> int:
    """The class of the highest score."""
    score = torch.as_tensor(score)
    if not torch.isfinite(score).all():
        raise ValueError(
            f"the {name or 'fused'} prediction of sample {sample.get('sample_id')!r} "
            f"is not finite ({score.tolist()}): the model has diverged, or its input "
            "was not finite"
        )
    return int(score.argmax())


def _columns(rows: list[dict], key: tuple[str, str]) -> tuple[list[int], list[int]]:
    missing = [r for r in rows if key not in r["predicted"]]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(rows)} samples have no score "
            f"{'/'.join(filter(None, key))!r} though the others do"
        )
    return [r["label"] for r in rows], [r["predicted"][key] for r in rows]


def _top1(rows: list[dict], key: tuple[str, str]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_columns(rows, key)))
