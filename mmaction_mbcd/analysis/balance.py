"""How balanced the modalities are over training: the traces of a run's log."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator

from ..engine.balance_trace import cosine, unimodal_and_fused_gradients
from .clips import HeldClips
from .curves import log_entries, read_curves
from .figures import caption, colours, figure_style, panels, save_figure, shared_legend
from .trained import TrainedModel


@dataclass
class Trace:
    """One quantity of the balance, a panel.

    Attributes:
        label: Of the axis.
        factor: From the log's unit to the axis'.
        line: Where nothing would be out of balance; None for none.
    """

    label: str
    factor: float = 1.0
    line: float | None = None


TRACES = {
    "s": Trace("confidence s\n(mean per clip)"),
    "r": Trace("relative learning\nspeed r", line=1),
    "drop_prob": Trace("drop probability"),
    "kept": Trace("kept in fusion,\n% of clips", 100),
    "acc": Trace("training batch\naccuracy, %", 100),
    "source": Trace("source validation\naccuracy, %", 100),
    "target": Trace("unseen target\naccuracy, %", 100),
    "grad_cos": Trace("cosine of unimodal\nand fused gradient", line=0),
    "grad_cos_clips": Trace("gradient cosine over\nvalidation clips", line=0),
}
"""The panels, in order: names of the log, and validation accuracies by role."""


def read_traces(work_dir: str | Path, modalities: Sequence[str]) -> pd.DataFrame:
    """What a run's log says of each modality, one row per number.

    Training logs a mean of the last steps or the last step's value, as MMEngine's log
    processor is set; validation its accuracies.

    Args:
        work_dir: The run's folder.
        modalities: Those of the run.

    Returns:
        Columns epoch (a fraction within an epoch), trace (a key of :data:`TRACES`),
        modality (``'fused'`` for the fused accuracy) and value. Of a step that a
        resumed run has logged twice, the later entry.

    Raises:
        FileNotFoundError: If the run has logged no training.
    """
    logged = {
        e["iter"]: e for e in log_entries(work_dir) if "loss" in e and "iter" in e
    }
    if not logged:
        raise FileNotFoundError(
            f"{work_dir} holds no */vis_data/scalars.json with training losses: was "
            "the run trained, and is LocalVisBackend among its vis_backends?"
        )
    # The last step of an epoch is logged: ignore_last is off in the configs.
    steps = max(e["iter"] / e["epoch"] for e in logged.values())
    rows = []
    for step, entry in sorted(logged.items()):
        for key, value in entry.items():
            trace, _, modality = key.partition("/")
            if trace in TRACES and modality in (*modalities, "fused"):
                rows.append((step / steps, trace, modality, value))
    try:
        rows += _validated(read_curves(work_dir), modalities)
    except FileNotFoundError:
        pass  # a run that was never validated still has traces
    return pd.DataFrame(rows, columns=["epoch", "trace", "modality", "value"])


def _validated(curves: pd.DataFrame, modalities: Sequence[str]) -> list[tuple]:
    return [
        (epoch, role, name, value)
        for role in ("source", "target")
        for name in (*modalities, "fused")
        if (key := f"{role}/{name}/top1".replace("/fused", "")) in curves
        for epoch, value in curves[key].items()
    ]


def gradient_cosines(trained: TrainedModel, clips: HeldClips) -> dict[str, float]:
    """Cosine of the unimodal and the fused loss's gradients over all clips.

    As :class:`.BalanceTraceHook` logs it for one batch, after the fact: of a
    checkpoint's weights, and with the gradients of the mean losses over N clips, which
    hold less noise.

    Args:
        trained: The model.
        clips: N of them.

    Returns:
        ``{modality: cosine}``; not-a-number where a gradient is zero.

    Raises:
        ValueError: If the model has no unimodal heads.
    """
    sums: dict[str, list[torch.Tensor]] = {}
    for states, batch in clips.states(trained.model):
        found = unimodal_and_fused_gradients(trained.model, states, batch)
        for m, (own, fused) in found.items():
            # Means over a batch, weighted back to sums.
            parts = [own.double() * batch.present[m].sum(), fused.double() * len(batch)]
            sums[m] = [a + b for a, b in zip(sums.get(m, (0, 0)), parts, strict=True)]
    return {m: float(cosine(*pair)) for m, pair in sums.items()}


def draw_balance(
    runs: Mapping[str, pd.DataFrame], path: str | os.PathLike, note: str = ""
) -> list[Path]:
    """A column per run, a row per trace that any of them has.

    Args:
        runs: ``{title: traces}`` of :func:`read_traces`.
        path: Without suffix.
        note: More for the caption.

    Returns:
        The files.
    """
    frame = pd.concat(
        [traces.assign(run=run) for run, traces in runs.items()], ignore_index=True
    )
    shown = [trace for trace in TRACES if (frame["trace"] == trace).any()]
    modalities = [m for m in frame["modality"].unique() if m != "fused"]
    palette = colours(modalities) | dict(fused="#000000")
    with figure_style():
        figure, axes = panels(
            len(shown), len(runs), height=1.3, sharex=True, sharey="row"
        )
        for column, (run, traces) in enumerate(runs.items()):
            for row, trace in enumerate(shown):
                own = traces[traces["trace"] == trace]
                _draw_trace(axes[row, column], own, TRACES[trace], palette)
            axes[0, column].set_title(run)
            axes[-1, column].set_xlabel("epoch")
            axes[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        for row, trace in enumerate(shown):
            axes[row, 0].set_ylabel(TRACES[trace].label)
        figure.align_ylabels(axes[:, 0])
        shared_legend(figure, axes.flat)
        caption(figure, f"From the runs' logs. {note}".strip())
        return save_figure(figure, path, frame)


def _draw_trace(ax, own: pd.DataFrame, trace: Trace, palette: Mapping) -> None:
    if trace.line is not None:
        ax.axhline(trace.line, color="0.6", lw=0.8, ls="--")
    if own.empty:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center",
                va="center", color="0.6", fontsize=7)  # fmt: skip
    for m, colour in palette.items():
        line = own[own["modality"] == m].sort_values("epoch")
        if len(line):
            few = "o-" if len(line) < 25 else "-"
            ax.plot(line["epoch"], trace.factor * line["value"], few, ms=2,
                    lw=1.6 if m == "fused" else 1, color=colour, label=m)  # fmt: skip
