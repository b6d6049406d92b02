"""Accuracy with one modality corrupted, by kind and severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...datasets.transforms.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    CorruptFlow,
    CorruptFrames,
    CorruptWaveform,
    insert_corruption,
)
from ...datasets.transforms.corruptions.audio import TAKES_RECORDING
from ...errors import UsageError
from ...evaluation.predictions import Predictions
from ..figures import colours, figure_style, panels, save_figure
from .base import (
    Suite,
    Table,
    difference_to,
    known_correct,
    percent,
    signed_interval,
    title_of,
    with_interval,
)
from .readings import CLEAN, Reading, Subject

_FOLDER = "corruptions"
_TRANSFORMS = {
    kind.modality_kind: kind.__name__
    for kind in (CorruptFrames, CorruptFlow, CorruptWaveform)
}


def default_kinds(modality_kind: str) -> list[str]:
    """Every kind once: where there is a second definition, not that of the files.

    Args:
        modality_kind: ``'RGB'``, ``'Flow'`` or ``'Audio'``.
    """
    known = CORRUPTIONS.get(modality_kind, {})
    return [name for name, each in known.items() if not each.in_file_pixels]


def measure_corruptions(
    variants: Mapping[tuple[str, str, int], Predictions], clean: Predictions
) -> pd.DataFrame:
    """Accuracy of the fused head and of the corrupted modality's own.

    Args:
        variants: ``{(modality, kind, severity): predictions}``.
        clean: Those of the same clips as they are.

    Returns:
        Columns modality (the corrupted one), kind, severity, head (``'fused'`` or the
        modality), N, top1, low, high, clean (the clean accuracy of the same head and
        clips), difference, difference_low, difference_high (to clean, paired over
        clips). Fractions.
    """
    rows = []
    for (modality, kind, severity), own in variants.items():
        for head in ("", modality):
            if head not in own.logits:
                continue
            mask = own.known(head) & clean.known(head)
            right = known_correct(own, head, mask)
            before = known_correct(clean, head, mask)
            rows.append(
                dict(modality=modality, kind=kind, severity=severity)
                | dict(head=title_of(head))
                | with_interval(right)
                | dict(clean=float(np.mean(before)) if len(before) else np.nan)
                | difference_to(right, before, own.sample_ids[mask])
            )
    return pd.DataFrame(rows)


def summarise_corruptions(data: pd.DataFrame) -> pd.DataFrame:
    """Mean corruption accuracy and relative drop of every head.

    The mean corruption accuracy weighs every kind and severity alike; the relative
    drop is (clean - mean) / clean. (ImageNet-C's mCE divides by the errors of a
    reference network; there is none for these data.)

    Args:
        data: Of :func:`measure_corruptions`.

    Returns:
        Columns modality, head, N, clean, mean_corruption, relative_drop. Fractions.
    """
    groups = data.groupby(["modality", "head"], sort=False)
    found = groups.agg(
        N=("N", "first"), clean=("clean", "first"), mean_corruption=("top1", "mean")
    ).reset_index()
    clean = found["clean"].replace(0, np.nan)
    found["relative_drop"] = (found["clean"] - found["mean_corruption"]) / clean
    return found


def draw_corruptions(data: pd.DataFrame, path: Path) -> None:
    """Fused accuracy over severity, a panel for each corrupted modality.

    Args:
        data: Of :func:`measure_corruptions`.
        path: Without suffix.
    """
    fused = data[data["head"] == "fused"]
    modalities = list(fused["modality"].unique())
    with figure_style():
        figure, axes = panels(1, len(modalities), 3, sharey=True)
        for ax, modality in zip(axes[0], modalities, strict=True):
            _draw_modality(ax, fused[fused["modality"] == modality])
            ax.set_title(f"{modality} corrupted")
        axes[0, 0].set_ylabel(f"fused top-1 %, N = {fused['N'].iloc[0]}")
        save_figure(figure, path, data)


def _draw_modality(ax: Axes, own: pd.DataFrame) -> None:
    palette, markers = colours(list(own["kind"].unique())), "osD^v<>"
    for index, (kind, rows) in enumerate(own.groupby("kind", sort=False)):
        rows = rows.sort_values("severity")
        ax.plot(
            [0, *rows["severity"]],
            [100 * rows["clean"].iloc[0], *(100 * rows["top1"])],
            marker=markers[index % len(markers)],
            ms=3,
            lw=1,
            color=palette[kind],
            label=kind.replace("_", " "),
        )
    ax.set_ylim(0, 100)
    ax.set_xticks([0, *SEVERITIES])
    ax.set_xlabel("severity (0: clean)")
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


@dataclass
class Corruptions(Suite):
    """One modality corrupted at a time, the others clean.

    Flow is corrupted itself. It is *not* computed again from corrupted video: with
    corrupted video flow stays that of the clean one, as in the published HAC-C.

    Args:
        kinds: Names of kinds, or ``'modality/kind'``; every kind if None.
        severities: From 1 to 5.
        recording: A sound file, or a folder of them, for wind and background; they are
            synthetic if None.
        flow_bound: Displacement, pixels per frame, that the stored flow is clipped at.
        seed: Of the noise.
    """

    kinds: Sequence[str] | None = None
    severities: Sequence[int] = SEVERITIES
    recording: str | None = None
    flow_bound: float = 20.0
    seed: int = 0

    name = "corruptions"

    def readings(self, subject: Subject) -> list[Reading]:
        """The clean data, and every kind of every modality at every severity."""
        chosen = self._chosen(subject)
        readings = [subject.clean()]
        for modality, kinds in chosen.items():
            for kind in kinds:
                for severity in self.severities:
                    pipeline = insert_corruption(
                        subject.pipelines[modality],
                        subject.kind(modality),
                        self._transform(subject.kind(modality), kind, severity),
                    )
                    name = f"{_FOLDER}/{modality}/{kind}_{severity}"
                    readings.append(subject.changed(name, modality, pipeline))
        return readings

    def _chosen(self, subject: Subject) -> dict[str, list[str]]:
        """Kinds of every modality of the model."""
        if self.kinds is None:
            return {m: default_kinds(subject.kind(m)) for m in subject.modalities}
        known = {m: CORRUPTIONS.get(subject.kind(m), {}) for m in subject.modalities}
        chosen = {
            m: [k for k in of if k in self.kinds or f"{m}/{k}" in self.kinds]
            for m, of in known.items()
        }
        found = {
            name for m, of in chosen.items() for k in of for name in (k, f"{m}/{k}")
        }
        if unknown := [name for name in self.kinds if name not in found]:
            has = "; ".join(
                f"{m}: {', '.join(of) or 'none'}" for m, of in known.items()
            )
            raise UsageError(
                f"--kinds: {', '.join(unknown)} is no corruption of the model's "
                f"modalities. There are {has}"
            )
        return {m: of for m, of in chosen.items() if of}

    def _transform(self, modality_kind: str, kind: str, severity: int) -> dict:
        config = dict(
            type=_TRANSFORMS[modality_kind],
            kind=kind,
            severity=severity,
            seed=self.seed,
        )
        if modality_kind == "Flow":
            config["bound"] = self.flow_bound
        if modality_kind == "Audio" and kind in TAKES_RECORDING and self.recording:
            config["recording"] = self.recording
        return config

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """Kind by severity for each modality, and the mean corruption accuracy."""
        variants = {
            _variant(name): each
            for name, each in predictions.items()
            if name.startswith(f"{_FOLDER}/")
        }
        clean = predictions[CLEAN]
        data = measure_corruptions(variants, clean)
        draw_corruptions(data, folder / "corruptions")
        tables = [
            Table(
                f"corruptions_{modality}",
                f"{modality} corrupted, the other modalities clean: fused top-1 % "
                f"(clean {percent(own['clean'].iloc[0])}, N = {own['N'].iloc[0]})",
                data[data["modality"] == modality],
                _kind_by_severity(own),
            )
            for modality, own in data[data["head"] == "fused"].groupby(
                "modality", sort=False
            )
        ]
        summary = summarise_corruptions(data)
        notes = [
            "Mean over kinds and severities. Drop: relative to clean.",
            "Flow is corrupted itself, and stays clean where video is corrupted.",
        ]
        title = "Mean corruption accuracy, top-1 %"
        shown = _shown_summary(summary)
        return [*tables, Table("corruptions_mean", title, summary, shown, notes)]


def _variant(name: str) -> tuple[str, str, int]:
    """``'corruptions/video/fog_3'`` -> ``('video', 'fog', 3)``."""
    _, modality, variant = name.split("/")
    kind, _, severity = variant.rpartition("_")
    return modality, kind, int(severity)


def _kind_by_severity(own: pd.DataFrame) -> pd.DataFrame:
    grid = own.pivot(index="kind", columns="severity", values="top1")
    grid = grid.loc[own["kind"].unique()]
    shown = pd.DataFrame({"kind": grid.index})
    for severity in grid:
        shown[f"severity {severity}"] = [percent(value) for value in grid[severity]]
    shown["mean"] = [percent(value) for value in grid.mean(axis=1)]
    last = own[own["severity"] == own["severity"].max()].set_index("kind")
    worst = last.loc[grid.index]
    shown[f"difference to clean at {own['severity'].max()}"] = [
        signed_interval(row) for _, row in worst.iterrows()
    ]
    return shown


def _shown_summary(summary: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "corrupted": summary["modality"],
            "head": summary["head"],
            "N": summary["N"],
            "clean": summary["clean"].map(percent),
            "mean corruption": summary["mean_corruption"].map(percent),
            "drop %": summary["relative_drop"].map(percent),
        }
    )
