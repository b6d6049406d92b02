"""Accuracy of every head per domain and class, and what is taken for what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.metrics import confusion_matrix

from ...evaluation.predictions import Predictions
from ..figures import figure_style, panels, save_figure
from .base import (
    ALL,
    Suite,
    Table,
    by_domain,
    known_correct,
    percent,
    percent_interval,
    skipped_note,
    title_of,
    with_interval,
    worth_showing,
)
from .readings import CLEAN

_WRITTEN = 12  # classes up to which a cell of a matrix says its number


def measure_accuracy(predictions: Predictions) -> pd.DataFrame:
    """Top-1 accuracy by head, domain and class.

    Args:
        predictions: Of one evaluation.

    Returns:
        Columns head, domain, class (``'all'`` for all), N, top1, low, high (Wilson's
        95 % interval), mean_class (of the rows of all classes: the mean of the
        accuracies of the classes that occur). N are the clips of which the head says
        something. Fractions.
    """
    rows = []
    for head in predictions.logits:
        for domain, mask in by_domain(predictions):
            classes = list(_by_class(predictions, head, mask))
            occurring = [row["top1"] for row in classes if row["N"]]
            whole = with_interval(known_correct(predictions, head, mask))
            whole["mean_class"] = np.mean(occurring) if occurring else np.nan
            for row in ({"class": ALL} | whole, *classes):
                rows.append(dict(head=title_of(head), domain=domain) | row)
    return pd.DataFrame(rows)


def _by_class(
    predictions: Predictions, head: str, mask: np.ndarray
) -> Iterator[dict[str, object]]:
    for index, name in enumerate(predictions.classes):
        own = mask & (predictions.labels == index)
        yield {"class": name} | with_interval(known_correct(predictions, head, own))


def measure_confusion(predictions: Predictions) -> pd.DataFrame:
    """How often a class is taken for another.

    Returns:
        Columns head, label, predicted (names of classes), count, and share of the
        label's clips (a fraction; NaN for a class without clips).
    """
    tables, names = [], list(predictions.classes)
    for head in predictions.logits:
        known = predictions.known(head)
        counts = confusion_matrix(
            predictions.labels[known],
            predictions.predicted(head)[known],
            labels=range(len(names)),
        )
        table = pd.DataFrame(counts, names, names).rename_axis("label").reset_index()
        table = table.melt("label", var_name="predicted", value_name="count")
        table["share"] = table["count"] / table.groupby("label")["count"].transform(
            lambda each: each.sum() or np.nan
        )
        tables.append(table.assign(head=title_of(head)))
    columns = ["head", "label", "predicted", "count", "share"]
    return pd.concat(tables, ignore_index=True)[columns]


def matrix_of(confusion: pd.DataFrame, head: str, value: str) -> pd.DataFrame:
    """One head's matrix, labels by predicted classes.

    Args:
        confusion: Of :func:`measure_confusion`.
        head: ``'fused'`` or a modality.
        value: ``'count'`` or ``'share'``.
    """
    own, names = confusion[confusion["head"] == head], confusion["label"].unique()
    matrix = own.pivot(index="label", columns="predicted", values=value)
    return matrix.loc[names, names]


def draw_confusion(confusion: pd.DataFrame, path: Path) -> None:
    """A matrix for every head: colours are shares of the label's clips.

    Args:
        confusion: Of :func:`measure_confusion`.
        path: Without suffix.
    """
    heads = list(confusion["head"].unique())
    size = max(2.2, 0.26 * confusion["label"].nunique())
    with figure_style():
        figure, axes = panels(1, len(heads), size + 0.2, size, sharey=True)
        for ax, head in zip(axes[0], heads, strict=True):
            image = _draw_matrix(ax, confusion, head)
        axes[0, 0].set_ylabel("label")
        colours = figure.colorbar(image, ax=axes, shrink=0.65, fraction=0.02, pad=0.01)
        colours.set_label("% of the label's clips")
        save_figure(figure, path, confusion)


def _draw_matrix(ax: Axes, confusion: pd.DataFrame, head: str) -> object:
    shares = 100 * matrix_of(confusion, head, "share")
    counts = matrix_of(confusion, head, "count")
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = range(len(shares))
    ax.set_xticks(places, shares.columns, rotation=60, ha="right",
                  rotation_mode="anchor")  # fmt: skip
    ax.set_yticks(places, shares.index)
    ax.grid(False)
    ax.set_title(f"{head} (N = {counts.to_numpy().sum()})")
    ax.set_xlabel("predicted")
    if len(shares) > _WRITTEN:
        return image
    for row in places:
        for column in places:
            if count := counts.iloc[row, column]:
                colour = "white" if shares.iloc[row, column] > 60 else "black"
                ax.text(column, row, count, ha="center", va="center", color=colour)
    return image


class Accuracy(Suite):
    """Per domain, class and modality, with Wilson's intervals; confusion matrices."""

    name = "accuracy"

    def report(
        self, predictions: Mapping[str, Predictions], folder: Path
    ) -> list[Table]:
        """By domain, by class, and the matrices, as counts and as shares."""
        clean = predictions[CLEAN]
        data, confusion = measure_accuracy(clean), measure_confusion(clean)
        draw_confusion(confusion, folder / "confusion")
        for head in confusion["head"].unique():
            for value in ("count", "share"):
                matrix = matrix_of(confusion, head, value)
                name = f"confusion_{head.replace('/', '-')}_{value}.csv"
                matrix.to_csv(folder / name)
        return [
            Table(
                "accuracy",
                "Top-1 % [95 % interval] by domain",
                data,
                _shown_by_domain(data),
                ["Wilson's interval: for the choice of clips, not for training."]
                + skipped_note(clean),
            ),
            Table(
                "accuracy_by_class",
                "Top-1 % [95 % interval] by class",
                data[(data["class"] != ALL) & (data["domain"] == ALL)],
                _shown_by_class(data),
            ),
        ]


def _shown_by_domain(data: pd.DataFrame) -> pd.DataFrame:
    rows = worth_showing(data[data["class"] == ALL])
    return pd.DataFrame(
        {
            "domain": rows["domain"],
            "head": rows["head"],
            "N": rows["N"],
            "top-1": [percent_interval(row) for _, row in rows.iterrows()],
            "mean of classes": rows["mean_class"].map(percent),
        }
    )


def _shown_by_class(data: pd.DataFrame) -> pd.DataFrame:
    rows = data[(data["class"] != ALL) & (data["domain"] == ALL)]
    names, heads = rows["class"].unique(), rows["head"].unique()
    shown = pd.DataFrame({"class": names})
    shown["N"] = rows.loc[rows["head"] == heads[0], "N"].to_list()
    for head in heads:
        own = rows[rows["head"] == head]
        shown[head] = [percent_interval(row) for _, row in own.iterrows()]
    return shown
