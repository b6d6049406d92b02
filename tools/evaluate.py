"""Evaluates a checkpoint beyond accuracy.

``python tools/evaluate.py CONFIG CHECKPOINT [options]``: accuracy by domain, class and
modality, missing modalities, corruptions, modality shifts, calibration, detection of
mistakes and of clips from elsewhere. docs/evaluation.md says what each suite measures.
What has been read is kept: an evaluation that was stopped goes on, and further suites
read only what they need beside. ``--predictions FILE`` takes what a grid or an earlier
evaluation has kept, and reads nothing.
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

from mmengine.config import Config

from mmaction_mbcd import cli
from mmaction_mbcd.analysis import suites
from mmaction_mbcd.analysis.suites.shift import LEVELS
from mmaction_mbcd.analysis.trained import TrainedModel
from mmaction_mbcd.datasets.transforms.corruptions import SEVERITIES

QUICK = ("accuracy", "missing", "calibration", "detection")
ALL = ("accuracy", "missing", "corruptions", "shift", "calibration", "detection", "ood")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s (CONFIG CHECKPOINT | --predictions FILE) [options]",
        description="Evaluate a checkpoint beyond accuracy.",
    )
    parser.add_argument("config", nargs="?", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file or URL")
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="in place of both, for accuracy, calibration and detection: predictions "
        "that were kept, such as a grid's runs/.../predictions_source.npz",
    )
    parser.add_argument(
        "--suites",
        nargs="+",
        choices=ALL,
        metavar="NAME",
        help=f"of {', '.join(ALL)} (default: {' '.join(QUICK)}, which share one pass "
        "over the clean data; of predictions all that they have)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="tables, figures and predictions (default: <checkpoint>_evaluation beside "
        "the checkpoint, or <predictions>_evaluation)",
    )
    cli.add_data_options(parser)
    parser.add_argument(
        "--weights",
        choices=["teacher", "student"],
        help="which weights of the checkpoint (default: the config's, the teacher's "
        "where it has one)",
    )
    parser.add_argument(
        "--in-domain",
        action="store_true",
        help="evaluate on the held-out split of the source domains, not on the target",
    )
    _add_suite_options(parser)
    args = parser.parse_intermixed_args(argv)  # options between the two as well
    if args.predictions is None and args.checkpoint is None:
        parser.error("give a config and a checkpoint, or --predictions FILE")
    if args.predictions is not None:
        if args.config is not None:
            parser.error("--predictions stands in place of config and checkpoint")
        if given := _of_the_data(parser, args):
            parser.error(f"{', '.join(given)}: predictions are of one model and data")
    return args


def _of_the_data(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> list[str]:
    """Options that say what is read, which kept predictions cannot follow."""
    free = {"predictions", "suites", "out", "bins", "config", "checkpoint"}
    return [
        f"--{name.replace('_', '-')}"
        for name, value in vars(args).items()
        if name not in free and value != parser.get_default(name)
    ]


def _add_suite_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("suites")
    group.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="corruptions: only these, such as fog or audio/wind (default: all)",
    )
    group.add_argument(
        "--severities",
        nargs="+",
        type=int,
        choices=SEVERITIES,
        default=SEVERITIES,
        help="corruptions: only these (default: all five)",
    )
    group.add_argument(
        "--recording",
        metavar="PATH",
        help="corruptions: sound file, or folder of them, for wind and background "
        "(default: synthetic ones)",
    )
    group.add_argument(
        "--flow-bound",
        type=float,
        default=20.0,
        metavar="PIXELS",
        help="corruptions: displacement that stored flow is clipped at (default: 20)",
    )
    group.add_argument(
        "--levels",
        nargs="+",
        type=float,
        default=LEVELS,
        metavar="LEVEL",
        help="shift: standard deviations of the noise, in those of the clip's input "
        f"(default: {' '.join(f'{level:g}' for level in LEVELS)})",
    )
    group.add_argument(
        "--bins", type=int, default=15, help="calibration: bins (default: 15)"
    )
    group.add_argument(
        "--ood-config",
        metavar="CONFIG",
        help="ood: config of another dataset, whose test clips are from outside",
    )
    group.add_argument("--ood-data-root", metavar="FOLDER", help="ood: its folder")
    group.add_argument(
        "--ood-target",
        nargs="+",
        metavar="DOMAIN",
        help="ood: the domains whose clips are taken (default: that config's target)",
    )
    group.add_argument(
        "--ood-split",
        choices=("full", "test"),
        help="ood: all clips of these domains, or their test split (default: that "
        "config's)",
    )
    group.add_argument(
        "--noise-seed",
        type=int,
        default=0,
        help="corruptions, shift: seed of the noise",
    )


def build_suites(args: argparse.Namespace) -> list[suites.Suite]:
    """The suites that are asked for, in the order of the list."""
    known = dict(
        accuracy=lambda: suites.Accuracy(),
        missing=lambda: suites.MissingModality(),
        corruptions=lambda: suites.Corruptions(
            args.kinds,
            args.severities,
            args.recording,
            args.flow_bound,
            args.noise_seed,
        ),
        shift=lambda: suites.ModalityShift(args.levels, args.noise_seed),
        calibration=lambda: suites.Calibration(args.bins),
        detection=lambda: suites.Detection(),
        ood=lambda: suites.OutOfDistribution(
            ood_config(args), held_out=bool(args.held_out_classes)
        ),
    )
    made = [make() for name, make in known.items() if name in (args.suites or QUICK)]
    if args.suites is None and args.predictions is not None:
        made = [each for each in made if each.needs_clean_alone()]
    return made


def ood_config(args: argparse.Namespace) -> Config | None:
    """The config of the other dataset, with its options merged.

    Raises:
        UsageError: If options are given, but no config.
    """
    changes = dict(
        data_root=args.ood_data_root, target=args.ood_target, eval_split=args.ood_split
    )
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.ood_config is None:
        if changes:
            raise cli.UsageError("--ood-data-root, --ood-target and --ood-split belong "
                                 "to --ood-config CONFIG")  # fmt: skip
        return None
    cfg = cli.read_config(args.ood_config)
    cli.suit_loaders(cfg)
    cli.set_datasets(cfg, **changes)
    return cfg


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, prints the tables and writes them."""
    args = parse_args(argv)
    with cli.one_line_errors(lambda: "the same command goes on from here"):
        if args.predictions is not None:
            made = build_suites(args)
            suites.evaluate_kept(args.predictions, made, out_folder(args))
            return 0
        cfg = cli.load_config(args)
        if args.weights:
            cli.choose_weights(cfg, args.weights)
        if args.in_domain:
            cli.evaluate_in_domain(cfg)
        trained = TrainedModel.load(cfg, args.checkpoint)
        suites.evaluate(trained, build_suites(args), out_folder(args))
    return 0


def out_folder(args: argparse.Namespace) -> Path:
    """``--out``, or a folder beside the checkpoint.

    Raises:
        UsageError: If the checkpoint is a URL, which nothing lies beside.
    """
    if args.out is not None:
        return args.out
    if args.predictions is None and "://" in args.checkpoint:
        raise cli.UsageError("give --out: nothing can be written beside a URL")
    file = args.predictions or Path(args.checkpoint)
    return file.with_name(f"{file.stem}_evaluation")


if __name__ == "__main__":
    sys.exit(main())
