"""Figures as files."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


def save_figure(figure: Figure, path: Path, data: pd.DataFrame) -> None:
    """Writes ``.png``, ``.svg`` and the numbers behind them, ``.csv``; closes it.

    Args:
        figure: From pyplot.
        path: Without suffix.
        data: What is drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=150)
    figure.savefig(f"{path}.svg")
    data.to_csv(f"{path}.csv", index=False)
    plt.close(figure)
