"""Accuracy of each modality beside the fused one, the paper's Figures 1(a) and 4."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from ..evaluation.predictions import Predictions
from .figures import caption, colours, figure_style, panels, save_figure, shared_legend
from .flatness import TITLES
from .shapley import grouped_bars
from .statistics import accuracy_interval

FUSED = "fused"


def measure_modalities(predictions: Predictions) -> pd.DataFrame:
    """Accuracy of every head, with Wilson's interval.

    A modality's accuracy is its own head's, over the clips that have the modality. The
    fused prediction of a model with one modality counts as that modality's: Figure
    1(a) has such models, trained alone.

    Args:
        predictions: Of one run; the heads of a model beside are left out.

    Returns:
        Columns role, head (``'fused'`` or a modality), value, low and high
        (fractions), N.
    """
    heads = {"": FUSED} | {
        m: m for m in predictions.modalities if m in predictions.logits
    }
    if len(predictions.modalities) == 1:
        heads = {"": predictions.modalities[0]}
    rows = []
    for role in dict.fromkeys(predictions.roles.tolist()):
        own = predictions.select(predictions.roles == role)
        for head, name in heads.items():
            count = int(own.known(head).sum())
            if not count:
                continue
            accuracy = own.correct(head).sum() / count
            low, high = accuracy_interval(accuracy, count)
            rows.append(
                dict(role=role, head=name, value=accuracy, low=low, high=high, N=count)
            )
    return pd.DataFrame(rows)


def draw_modalities(frame: pd.DataFrame, path: str | os.PathLike) -> list[Path]:
    """A panel per role, a group of bars per head, a bar per run.

    Args:
        frame: Of :func:`measure_modalities`, with a column run.
        path: Without suffix.

    Returns:
        The files.
    """
    roles, runs = frame["role"].unique(), frame["run"].unique()
    heads = sorted(frame["head"].unique(), key=lambda h: h == FUSED)  # fused last
    palette = colours(runs)
    width = max(2.6, 0.22 * len(runs) * len(heads) + 0.8)
    with figure_style():
        figure, axes = panels(1, len(roles), width=width, sharey=True)
        for ax, role in zip(axes[0], roles, strict=True):
            own = frame[frame["role"] == role]
            grouped_bars(ax, own, "head", heads, palette)
            counts = sorted(own["N"].unique())
            shown = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
            ax.set_title(f"{TITLES.get(role, role)} (N = {shown} clips)")
        axes[0, 0].set_ylabel("top-1 accuracy, %")
        shared_legend(figure, axes.flat)
        caption(
            figure,
            "A modality's accuracy is its own head's. 95 % Wilson interval: the "
            "sampling of clips, not the randomness of training.",
        )
        return save_figure(figure, path, frame)
