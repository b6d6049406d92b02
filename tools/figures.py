"""Figures of finished runs, side by side.

``python tools/figures.py KIND RUN [RUN ...] --out FOLDER``. RUN is the folder of a run
of tools/train.py, or a checkpoint in one; ``NAME=RUN`` names it in the figure,
``RUN@student`` takes the student's weights. Each figure becomes a PNG, an SVG and a CSV
of the numbers in it. docs/figures.md says what each kind measures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmaction_mbcd import cli
from mmaction_mbcd.analysis.figure_kinds import FigureOptions, make_figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; each kind has options of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, text: str, *groups) -> argparse.ArgumentParser:
        own = kinds.add_parser(name, help=text, description=text)
        own.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
        own.add_argument("--out", type=Path, required=True, help="folder of the files")
        for group in groups:
            group(own)
        return own

    kind("curves", "validation and test accuracy over the epochs (Figure 5)")
    kind(
        "modalities",
        "accuracy of each modality beside the fused one (Figures 1(a) and 4)",
        _add_clips, _add_roles,
    )  # fmt: skip
    held = _add_clips, _add_roles, _add_memory
    own = kind("flatness", "loss increase at a distance (Figure 3)", *held)
    own.add_argument(
        "--gammas", nargs="+", type=_positive, metavar="G",
        help="radii (default: five up to half the weights' norm; with "
        "--filter-normalised 0.1 to 0.5)",
    )  # fmt: skip
    own.add_argument("--directions", type=_count, default=10, help="default: 10")
    own.add_argument(
        "--filter-normalised", action="store_true", dest="by_filter",
        help="each filter's direction is as long as the filter",
    )  # fmt: skip
    own = kind("landscape", "loss over a plane of weights (Figure 1(c))", *held)
    own.add_argument(
        "--radius", type=_positive, default=1.0,
        help="half a side, in filter norms (default: 1)",
    )  # fmt: skip
    own.add_argument(
        "--points", type=_count, default=15, help="along a side, odd (default: 15)"
    )
    own.add_argument(
        "--through", action="store_true",
        help="one plane through the weights of three RUNs, not random directions",
    )  # fmt: skip
    own.add_argument(
        "--no-surface", action="store_false", dest="surface", help="contours alone"
    )
    own = kind("embeddings", "t-SNE of the fused embeddings (Figure 6)", *held)
    own.add_argument("--perplexity", type=_positive, default=30.0, help="default: 30")
    own.add_argument(
        "--neighbours", type=_count, default=5,
        help="of the nearest-neighbour accuracy (default: 5)",
    )  # fmt: skip
    own = kind("balance", "speed, dropout and accuracy per modality", *held)
    own.add_argument(
        "--gradients", action="store_true",
        help="also the gradient cosines of the checkpoints that are left, over source "
        "validation clips",
    )  # fmt: skip
    own = kind("shift", "accuracy under noise in a modality (Figure 1(b))", _add_clips)
    own.add_argument(
        "--levels", nargs="+", type=_positive, metavar="LEVEL",
        help="of the noise, as tools/evaluate.py has them",
    )  # fmt: skip
    own = kind("shapley", "what each modality contributes", *held)
    own.add_argument("--resamples", type=_count, default=2000, help="default: 2000")
    return parser.parse_args(argv)


def _add_clips(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", help="folder of the dataset, if it has moved")
    parser.add_argument(
        "--checkpoint", choices=["best", "last"], default="best", dest="rule",
        help="of a folder: best by source validation (default), or the last",
    )  # fmt: skip
    parser.add_argument(
        "--clips", type=_count, metavar="N",
        help="of each role, drawn once for all runs (default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="default: 0")


def _add_roles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--roles", nargs="+", choices=["source", "target"],
        help="whose clips: the sources' validation, the target's test",
    )  # fmt: skip


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gigabytes", type=_positive, default=4.0,
        help="memory for the clips (default: 4)",
    )  # fmt: skip


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive; got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the figure and says where it is."""
    options = vars(parse_args(argv))
    kind, runs = options.pop("kind"), options.pop("runs")
    with cli.one_line_errors():
        files, table = make_figure(kind, runs, FigureOptions(**options))
        if table is not None:
            print(table.to_string(index=False))
        for file in files:
            print(file)


if __name__ == "__main__":
    main()
