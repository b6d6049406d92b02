"""Make the synthetic action data set: encoded video, flow and sound in HAC's layout.

Example:
    python tools/data/make_synth_action.py data/synth --workers 2
    python tools/data/make_synth_action.py data/synth_hard --audio-difficulty 0.8

See ``mmaction_mbcd/datasets/synth`` for what the pictures and sounds are.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from rich.console import Console
from rich.table import Table

from mmaction_mbcd.datasets.synth import (
    CLASSES,
    DOMAINS,
    META_FILE,
    MODALITIES,
    SPLITS,
    SynthConfig,
    generate,
)
from mmaction_mbcd.errors import one_line_errors

HELP = dict(
    seed="of everything",
    domains=f"some of: {' '.join(DOMAINS)}",
    target="domains in which the background tint is random",
    num_classes=f"the first ones of: {' '.join(CLASSES)}",
    train_per_class="clips per class and domain",
    test_per_class="clips per class and domain",
    size="pixels a side, even",
    frames="of a clip",
    fps="frames per second",
    sample_rate="of the sound, Hz",
    spurious="0 to 1: how strongly the tint follows the label in the source domains",
    audio_difficulty="0 to 1: noise and distractors",
    missing_audio="fraction of clips without a wav file",
    flow_bound="pixels per frame that 8 bits span",
    useless=f"modalities that hold noise instead: some of {' '.join(MODALITIES)}",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """One option per field of the config, with the same defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to fill")
    several = dict(
        domains=list(SynthConfig().domains),
        target=list(SynthConfig().targets),
        useless=[],
    )
    for field in dataclasses.fields(SynthConfig):
        option, text = f"--{field.name.replace('_', '-')}", HELP[field.name]
        if field.name in several:
            default = several[field.name]
            parser.add_argument(
                option, nargs="+", default=default, metavar="NAME", help=text
            )
        else:
            kind, default = type(field.default), field.default
            parser.add_argument(option, type=kind, default=default, help=text)
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
    with one_line_errors():
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
