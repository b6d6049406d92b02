"""Accuracy with every non-empty subset of the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...evaluation.predictions import Predictions
from ..figures import figure_style, panels, save_figure
from ..shapley import coalitions
from .base import (
    ALL,
    Suite,
    Table,
    by_domain,
    difference_to,
    percent_interval,
    signed_interval,
    skipped_note,
    with_interval,
    worth_showing,
)
from .readings import CLEAN, Reading, Subject

_FOLDER = "missing/"


def subsets_of(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, each in the order of fusion; all of them come first."""
    return sorted(coalitions(modalities)[1:], key=len, reverse=True)


def file_of(subset: Sequence[str], modalities: Sequence[str]) -> str:
    """Name of a subset's predictions; all modalities are the clean ones."""
    return CLEAN if len(subset) == len(modalities) else _FOLDER + "+".join(subset)


def measure_missing(
    subsets: Mapping[tuple[str, ...], Predictions], clean: Predictions
) -> pd.DataFrame:
    """Fused accuracy of each subset of modalities, against all of them.

    Args:
        subsets: ``{modalities that are kept: predictions}``.
        clean: Those of all modalities, of the same clips.

    Returns:
        Columns kept, domain, N, top1, low, high, without (clips that have none of the
        kept modalities: predicted from zeros alone, and counted), difference to all
        modalities, difference_low, difference_high (95 %, paired over clips).
        Fractions.
    """
    rows = []
    for kept, own in subsets.items():
        nothing = ~np.any([own.present[m] for m in kept], axis=0)
        for domain, mask in by_domain(own):
            mask = mask & ~own.skipped
            rows.append(
                dict(kept=" ".join(kept), domain=domain)
                | with_interval(own.correct()[mask])
                | dict(without=int((nothing & mask).sum()))
                | difference_to(
                    own.correct()[mask], clean.correct()[mask], own.sample_ids[mask]
                )
            )
    return pd.DataFrame(rows)


def draw_missing(data: pd.DataFrame, path: Path) -> None:
    """Bars of the fused accuracy of every subset, with intervals.

    Args:
        data: Of :func:`measure_missing`.
        path: Without suffix.
    """
    rows = data[data["domain"] == ALL].iloc[::-1]
    ends = np.array([rows["top1"] - rows["low"], rows["high"] - rows["top1"]])
    shades = 1 - 0.25 * rows["kept"].str.count(" ")  # fewer modalities, darker
    with figure_style():
        figure, axes = panels(1, 1, 0.5 + 0.2 * len(rows), 4)
        ax = axes[0, 0]
        ax.barh(rows["kept"], 100 * rows["top1"], xerr=100 * ends,
                color=[(0, 0.45 * shade, 0.7 * shade) for shade in shades.clip(0.3)],
                error_kw=dict(lw=0.8, capsize=2, ecolor="0.4"))  # fmt: skip
        ax.set_xlim(0, 100)
        ax.grid(False, axis="y")
        ax.set_xlabel(f"fused top-1 %, N = {rows['N'].iloc[0]} (95 % interval)")
        ax.set_ylabel("modalities that are there")
        save_figure(figure, path, data)


class MissingModality(Suite):
    """Every non-empty subset of modalities, by masking; no retraining, no filling-in.

    See :func:`.predict_subsets` for what masking is, and how it equals the published
    protocol (arXiv 2605.06643: the embedding is set to zero).
    """

    name = "missing"

    def readings(self, subject: Subject) -> list[Reading]:
        """The clean data, once for all subsets."""
        everything = subject.modalities
        subsets = {file_of(each, everything): each for each in subsets_of(everything)}
        return [subject.clean(**subsets)]

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """Accuracy by subset, and its difference to all modalities."""
        clean = predictions[CLEAN]
        subsets = {
            kept: predictions[file_of(kept, clean.modalities)]
            for kept in subsets_of(clean.modalities)
        }
        data = measure_missing(subsets, clean)
        draw_missing(data, folder / "missing")
        rows, everything = worth_showing(data), " ".join(clean.modalities)
        shown = pd.DataFrame(
            {
                "modalities": rows["kept"],
                "domain": rows["domain"],
                "N": rows["N"],
                "none": rows["without"],
                "fused top-1": [percent_interval(row) for _, row in rows.iterrows()],
                "difference to all": [
                    "-" if row["kept"] == everything else signed_interval(row)
                    for _, row in rows.iterrows()
                ],
            }
        )
        notes = [
            "A modality that is left out is a zero feature in what is fused.",
            *skipped_note(clean),
        ]
        if not rows["without"].any():
            shown = shown.drop(columns="none")
        else:
            notes.insert(
                1, "none: clips that have none of these modalities; they count."
            )
        title = "Missing modality: fused top-1 % [95 % interval]"
        return [Table("missing", title, data, shown, notes)]
