"""Validation and test accuracy over training, as the paper's Figure 5."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402


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
    rows: dict[int, dict] = {}
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if "source/top1" in entry:
                rows[entry["step"]] = entry
    if not rows:
        raise FileNotFoundError(
            f"{work_dir} holds no */vis_data/scalars.json with source/top1: was the "
            "run validated, and is LocalVisBackend among its vis_backends?"
        )
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
    frame.index.name = "epoch"
    return frame.drop(columns=["step", "time", "data_time"], errors="ignore")


def plot_curves(
    runs: Mapping[str, pd.DataFrame],
    modalities: Sequence[str],
    path: str | Path,
    selected: Mapping[str, int] | None = None,
    target_name: str = "target",
) -> None:
    """One column per run: source validation above, unseen target below.

    Args:
        runs: ``{title: curves}`` as :func:`read_curves` returns them.
        modalities: Drawn beside the fused accuracy.
        path: Of the PNG.
        selected: Epoch chosen on the source validation, marked by a line.
        target_name: For the axis.
    """
    figure, axes = plt.subplots(
        2,
        len(runs),
        figsize=(3.6 * len(runs), 5.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    labels = {"source": "source validation", "target": f"unseen {target_name}"}
    colours = plt.get_cmap("tab10")
    for column, (title, frame) in enumerate(runs.items()):
        for row, role in enumerate(labels):
            ax = axes[row, column]
            for index, m in enumerate(modalities):
                key = f"{role}/{m}/top1"
                if key in frame:
                    ax.plot(
                        frame.index,
                        100 * frame[key],
                        lw=1.2,
                        label=m,
                        color=colours(index),
                    )
            ax.plot(
                frame.index, 100 * frame[f"{role}/top1"], "k-", lw=2.2, label="fused"
            )
            if f"student/{role}/top1" in frame:
                ax.plot(
                    frame.index,
                    100 * frame[f"student/{role}/top1"],
                    "k:",
                    lw=1.2,
                    label="fused, student",
                )
            if selected and title in selected:
                ax.axvline(selected[title], color="0.6", ls="--", lw=1)
            ax.grid(alpha=0.3)
            ax.set_ylim(0, 100)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if row == 0:
                ax.set_title(title)
            else:
                ax.set_xlabel("epoch")
            if column == 0:
                count = frame.get(f"{role}/N")
                known = "" if count is None else f" (N = {count.iloc[-1]:.0f})"
                ax.set_ylabel(f"{labels[role]}{known}, top-1 %", fontsize="small")
    handles = {}
    for ax in axes.flat:
        handles |= {
            label: h for h, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles)
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
