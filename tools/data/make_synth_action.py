"""Make the synthetic action data set: encoded video, flow and sound in HAC's layout.

Example:
    python tools/data/make_synth_action.py data/synth --workers 2
    python tools/data/make_synth_action.py data/synth_hard --audio-difficulty 0.8

See ``mmaction_mbcd/datasets/synth`` for what the pictures and sounds are.
"""

import argparse
import sys
import time
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  repairs the hosts before they are imported
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")

from rich.console import Console
from rich.table import Table

from mmaction_mbcd.datasets.synth import (
    CLASSES,
    DOMAINS,
    META_FILE,
    SPLITS,
    SynthConfig,
    generate,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """One option per field of the config, with the same defaults."""
    default = SynthConfig()
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to fill")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--domains",
        nargs="+",
        default=list(default.domains),
        metavar="DOMAIN",
        help=f"some of: {' '.join(DOMAINS)}",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        default=list(default.targets),
        metavar="DOMAIN",
        help="domains in which the background tint is random",
    )
    parser.add_argument(
        "--num-classes",
        type=int,
        default=default.num_classes,
        help=f"the first ones of: {' '.join(CLASSES)}",
    )
    parser.add_argument(
        "--train-per-class",
        type=int,
        default=default.train_per_class,
        help="clips per class and domain",
    )
    parser.add_argument(
        "--test-per-class",
        type=int,
        default=default.test_per_class,
        help="clips per class and domain",
    )
    parser.add_argument(
        "--size", type=int, default=default.size, help="pixels a side, even"
    )
    parser.add_argument("--frames", type=int, default=default.frames)
    parser.add_argument("--fps", type=int, default=default.fps)
    parser.add_argument(
        "--sample-rate", type=int, default=default.sample_rate, help="of the sound, Hz"
    )
    parser.add_argument(
        "--spurious",
        type=float,
        default=default.spurious,
        help="0 to 1: how strongly the tint follows the label in the source domains",
    )
    parser.add_argument(
        "--audio-difficulty",
        type=float,
        default=default.audio_difficulty,
        help="0 to 1: noise and distractors",
    )
    parser.add_argument(
        "--missing-audio",
        type=float,
        default=default.missing_audio,
        help="fraction of clips without a wav file",
    )
    parser.add_argument(
        "--flow-bound",
        type=float,
        default=default.flow_bound,
        help="pixels per frame that 8 bits span",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--overwrite",
        "--force",
        action="store_true",
        help="replace a synthetic data set that is already in the folder",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def summary(meta: dict, out: Path, seconds: float) -> Table:
    """Clips per domain and split, with the size of each domain's folder."""
    made = f"made in {seconds:.1f} s" if seconds else "already there"
    table = Table(title=f"{out}: {made}", title_justify="left")
    table.add_column("domain")
    table.add_column("role")
    for column in (*SPLITS, "without audio", "MB"):
        table.add_column(column, justify="right")
    for domain in meta["domains"]:
        files = [path for path in (out / domain).rglob("*") if path.is_file()]
        table.add_row(
            domain,
            "target" if domain in meta["targets"] else "source",
            *(str(meta["counts"][domain][split]) for split in SPLITS),
            str(sum(meta["clips_without_audio"][domain].values())),
            f"{sum(path.stat().st_size for path in files) / 1e6:.1f}",
        )
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 2 after an error of the caller's."""
    args = vars(parse_args(argv))
    out, workers = args.pop("out"), args.pop("workers")
    overwrite, quiet = args.pop("overwrite"), args.pop("quiet")
    # The file holds a plain name where there is one target, like the default.
    target = args.pop("target")
    config = SynthConfig(target=target[0] if len(target) == 1 else target, **args)
    try:
        was_there = (out / META_FILE).exists() and not overwrite
        start = time.perf_counter()
        meta = generate(out, config, workers, overwrite, progress=not quiet)
        seconds = 0.0 if was_there else time.perf_counter() - start
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(summary(meta, out, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
