"""Validation and test accuracy over training, as the paper's Figure 5."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats

from .figures import caption, colours, figure_style, panels, save_figure, shared_legend


def read_curves(work_dir: str | Path) -> pd.DataFrame:
    """The validation metrics of a run, one row per validated epoch.

    A run that was resumed has several log folders; of an epoch that was validated
    twice the later result counts (they are equal). A line that a kill or a full disk
    cut off is passed over.

    Args:
        work_dir: The run's folder.

    Returns:
        Indexed by epoch; one column per metric, fractions.

    Raises:
        FileNotFoundError: If the run has logged no validation.
    """
    rows = {e["step"]: e for e in log_entries(work_dir) if "source/top1" in e}
    if not rows:
        raise FileNotFoundError(
            f"{work_dir} holds no */vis_data/scalars.json with source/top1: was the "
            "run validated, and is LocalVisBackend among its vis_backends?"
        )
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    frame.index.name = "epoch"
    return frame.drop(columns=["step", "time", "data_time"], errors="ignore")


def log_entries(work_dir: str | Path) -> Iterator[dict]:
    """What a run has logged, all its parts one after the other.

    A line that a kill or a full disk cut off is passed over.
    """
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def curve_correlation(frame: pd.DataFrame) -> dict[str, float]:
    """How closely the test curve follows the validation curve over the epochs.

    Successive epochs are no independent samples, so there is no p-value.

    Args:
        frame: Of :func:`read_curves`.

    Returns:
        ``pearson`` and ``spearman`` of ``source/top1`` and ``target/top1``,
        not-a-number where a curve is constant or there are fewer than three epochs;
        ``epochs``.
    """
    if "target/top1" not in frame:
        return dict(pearson=float("nan"), spearman=float("nan"), epochs=0)
    both = frame[["source/top1", "target/top1"]].dropna()
    found = dict(pearson=float("nan"), spearman=float("nan"), epochs=len(both))
    if len(both) >= 3 and (both.nunique() > 1).all():
        columns = both.to_numpy().T
        found["pearson"] = float(stats.pearsonr(*columns).statistic)
        found["spearman"] = float(stats.spearmanr(*columns).statistic)
    return found


def correlation_table(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """:func:`curve_correlation` of each run, with a column run."""
    return pd.DataFrame(
        [dict(run=run) | curve_correlation(frame) for run, frame in runs.items()]
    )


def draw_curves(
    runs: Mapping[str, pd.DataFrame],
    modalities: Sequence[str],
    path: str | os.PathLike,
    selected: Mapping[str, int] | None = None,
    target_name: str = "target",
) -> list[Path]:
    """One column per run: source validation above, unseen target below.

    Args:
        runs: ``{title: curves}`` as :func:`read_curves` returns them.
        modalities: Drawn beside the fused accuracy.
        path: Without suffix.
        selected: Epoch chosen on the source validation, marked by a line.
        target_name: For the axis.

    Returns:
        The files.
    """
    labels = {"source": "source validation", "target": f"unseen {target_name}"}
    palette = colours(modalities)
    with figure_style():
        figure, axes = panels(2, len(runs), sharex=True, sharey=True)
        for column, (title, frame) in enumerate(runs.items()):
            for row, role in enumerate(labels):
                ax = axes[row, column]
                _draw_role(ax, frame, role, palette)
                if selected and title in selected:
                    ax.axvline(selected[title], color="0.6", ls="--", lw=1)
                if column == 0:
                    count = frame.get(f"{role}/N")
                    known = "" if count is None else f" (N = {count.iloc[-1]:.0f})"
                    ax.set_ylabel(f"{labels[role]}{known}\ntop-1 accuracy, %")
            axes[0, column].set_title(_titled(title, curve_correlation(frame)))
            axes[1, column].set_xlabel("epoch")
        shared_legend(figure, axes.flat)
        caption(
            figure,
            "r: Pearson's, ρ: Spearman's correlation of the two fused curves over the "
            "validated epochs"
            + (
                "; dashed: the epoch selected on source validation."
                if selected
                else "."
            ),
        )
        tables = [frame.reset_index().assign(run=run) for run, frame in runs.items()]
        return save_figure(figure, path, pd.concat(tables, ignore_index=True))


def _draw_role(
    ax: Axes, frame: pd.DataFrame, role: str, palette: Mapping[str, str]
) -> None:
    """The curves of one run and role, percent."""
    for m, colour in palette.items():
        if (key := f"{role}/{m}/top1") in frame:
            ax.plot(frame.index, 100 * frame[key], lw=1, label=m, color=colour)
    fused, beside = f"{role}/top1", f"student/{role}/top1"
    if fused in frame:
        ax.plot(frame.index, 100 * frame[fused], "k-", lw=1.8, label="fused")
    if beside in frame:
        ax.plot(frame.index, 100 * frame[beside], "k:", lw=1.2, label="fused, student")
    ax.set_ylim(0, 100)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _titled(title: str, found: Mapping[str, float]) -> str:
    if pd.isna(found["pearson"]):
        return title
    return f"{title}\nr = {found['pearson']:.2f}, ρ = {found['spearman']:.2f}"
