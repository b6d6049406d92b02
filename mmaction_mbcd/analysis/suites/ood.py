"""Whether a head notices clips that it was not made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from mmengine.config import Config

from ...cli.data import first_dataset, set_datasets
from ...datasets import MultiModalDataset
from ...errors import UsageError
from ...evaluation.predictions import Predictions
from ..detection import SCORES, out_of_distribution
from ..figures import colours, figure_style, panels, save_figure, shared_legend
from .base import Suite, Table, percent, title_of
from .detection import NAMES, auroc_interval, percent_auroc
from .readings import CLEAN, Reading, Subject, digest_of_clips

_OTHER, _HELD_OUT = "ood/dataset", "ood/held_out_classes"


def measure_ood(
    inside: Predictions, outside: Mapping[str, Predictions]
) -> pd.DataFrame:
    """How well each head and score tells the data from others.

    Args:
        inside: Of the data that the model is made for.
        outside: ``{title: predictions of clips from elsewhere}``.

    Returns:
        Columns outside (the title), head, score, N_inside, N_outside, auroc, auroc_low,
        auroc_high (:func:`.auroc_interval`), fpr95 (inside positive: clips from outside
        that are accepted where 95 % from inside are),
        fpr95_hac (the convention of the evaluation published with HAC, outside
        positive), aupr_in, aupr_out, detection_error. Fractions.
    """
    rows = []
    for title, others in outside.items():
        for head in inside.logits:
            own = inside.logits[head][inside.known(head)]
            other = others.logits[head][others.known(head)]
            if not len(own) or not len(other):
                continue
            for name, score in SCORES.items():
                rows.append(
                    dict(outside=title, head=title_of(head), score=name)
                    | dict(N_inside=len(own), N_outside=len(other))
                    | _measures(score(own), score(other))
                )
    return pd.DataFrame(rows)


def _measures(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    found = out_of_distribution(own, other)
    published = out_of_distribution(own, other, positive="outside")
    scores = np.concatenate([own, other])
    low, high = auroc_interval(scores, np.arange(len(scores)) < len(own))
    return found | dict(auroc_low=low, auroc_high=high, fpr95_hac=published["fpr95"])


def draw_ood(
    inside: Predictions, outside: Mapping[str, Predictions], path: Path
) -> None:
    """How the fused head's scores are spread inside and outside.

    Args:
        inside: Of the data that the model is made for.
        outside: ``{title: predictions of clips from elsewhere}``.
        path: Without suffix.
    """
    sides = {"in distribution": inside} | dict(outside)
    data = pd.concat(
        pd.DataFrame(dict(clips=title, score=name, value=_fused(score, own)))
        for name, score in SCORES.items()
        for title, own in sides.items()
    )
    palette = colours(list(sides))
    with figure_style():
        figure, axes = panels(1, len(SCORES))
        for ax, name in zip(axes[0], SCORES, strict=True):
            rows = data[data["score"] == name]
            edges = np.histogram_bin_edges(rows["value"], 25)
            for title, own in rows.groupby("clips", sort=False):
                weights = np.full(len(own), 100 / len(own))
                ax.hist(own["value"], edges, weights=weights, alpha=0.5,
                        color=palette[title],
                        label=f"{title} (N = {len(own)})")  # fmt: skip
            ax.set_xlabel(NAMES[name] + (" (negative)" if name == "entropy" else ""))
        axes[0, 0].set_ylabel("clips, %")
        shared_legend(figure, axes.flat)
        save_figure(figure, path, data)


def _fused(score, predictions: Predictions) -> np.ndarray:
    return score(predictions.logits[""][predictions.known()])


@dataclass
class OutOfDistribution(Suite):
    """Clips of another dataset, or of classes that were held out of training.

    The clips of the other dataset are read by the test pipelines of its own config,
    which know its files, and normalised by the model. What they make must have the
    shape of the model's own clips.

    Args:
        other: Config of the other dataset, with all its options merged; None for none.
        held_out: The config's ``held_out_classes`` are a second outside.
    """

    other: Config | None = None
    held_out: bool = False

    name = "ood"

    def readings(self, subject: Subject) -> list[Reading]:
        """The clean data, and those from outside."""
        readings = [subject.clean()]
        if self.other is not None:
            readings.append(self._of_other(subject))
        if self.held_out:
            readings.append(_of_held_out(subject))
        if len(readings) == 1:
            raise UsageError(
                "--suites ood needs clips from outside: another dataset's "
                "(--ood-config CONFIG), or classes that the model was trained without "
                "(--held-out-classes)"
            )
        return readings

    def _of_other(self, subject: Subject) -> Reading:
        _refuse_other_modalities(subject, self.other)
        set_datasets(self.other, modalities=list(subject.modalities))
        # Its own data and pipelines, this model's preprocessing and weights.
        trained = replace(subject.trained, config=self.other)
        dataset = trained.loader().dataset
        _refuse_other_shapes(subject, dataset)
        clips = digest_of_clips(dataset)
        if clips == subject.identity["clips"]:
            raise UsageError("--ood-config: these are the clips that are evaluated")
        facts = dict(clips=clips, dataset=type(dataset).__name__)
        subsets = {_OTHER: subject.modalities}
        return Reading(_OTHER, trained.loader, len(dataset), facts, subsets)

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """One row for each kind of outside, head and score."""
        inside, outside = predictions[CLEAN], {}
        if self.other is not None:
            outside[self._title()] = predictions[_OTHER]
        if self.held_out:
            outside["held-out classes"] = predictions[_HELD_OUT]
        data = measure_ood(inside, outside)
        draw_ood(inside, outside, folder / "ood")
        shown = pd.DataFrame(
            {
                "outside": data["outside"],
                "head": data["head"],
                "score": data["score"].map(NAMES),
                "N in": data["N_inside"],
                "N out": data["N_outside"],
                "AUROC %": [percent_auroc(row) for _, row in data.iterrows()],
                "FPR95 %": data["fpr95"].map(percent),
                "as HAC": data["fpr95_hac"].map(percent),
                "AUPR in": data["aupr_in"].map(percent),
            }
        )
        notes = [
            "FPR95: clips from outside that are accepted where 95 % from inside are.",
            "as HAC: clips from inside that are refused where 95 % from outside are.",
        ]
        title = "Out-of-distribution detection [95 % interval]"
        return [Table("ood", title, data, shown, notes)]

    def _title(self) -> str:
        dataset = first_dataset(self.other)
        kind = dataset["type"]
        name = kind if isinstance(kind, str) else kind.__name__
        target = dataset.get("target") or ()
        domains = [target] if isinstance(target, str) else list(target)
        return " ".join([name.removesuffix("Dataset"), *domains])


def _of_held_out(subject: Subject) -> Reading:
    classes = list(subject.dataset.held_out_classes)
    if not classes:
        raise UsageError(
            "the config holds no classes out: name them with --held-out-classes, as in "
            "training"
        )
    saved = subject.trained.facts.get("experiment") or {}
    if "held_out_classes" not in saved:
        raise UsageError(
            "the checkpoint does not say which classes it was trained without; train "
            f"it with tools/train.py --held-out-classes {' '.join(classes)}"
        )

    def loader():
        return subject.trained.loader(use="held_out")

    facts = dict(held_out_classes=classes)
    count = len(loader().dataset)
    return Reading(_HELD_OUT, loader, count, facts, {_HELD_OUT: subject.modalities})


def _refuse_other_modalities(subject: Subject, other: Config) -> None:
    known = first_dataset(other).get("pipelines") or {}
    if missing := [m for m in subject.modalities if m not in known]:
        raise UsageError(
            f"--ood-config: its data have no {', '.join(missing)} (they have "
            f"{', '.join(known) or 'no pipelines'}), and the model needs "
            f"{', '.join(subject.modalities)}: train one with --modalities that both "
            "have"
        )


def _refuse_other_shapes(subject: Subject, dataset: MultiModalDataset) -> None:
    """Compares the first clip of each in the modalities that both clips have."""
    own, other = subject.dataset[0], dataset[0]
    present = [each["data_samples"].present for each in (own, other)]
    shapes = {
        m: [tuple(each["inputs"][m].shape) for each in (own, other)]
        for m in subject.modalities
        if all(has[m] for has in present)
    }
    wrong = [
        f"{m} is {' x '.join(map(str, b))}, not {' x '.join(map(str, a))}"
        for m, (a, b) in shapes.items()
        if a != b
    ]
    if wrong:
        raise UsageError(
            "--ood-config: its clips are of another shape than the model's own ("
            f"{'; '.join(wrong)}), and would be told by that alone. Write a config of "
            "that dataset whose test pipelines sample and resize as the model's do"
        )
