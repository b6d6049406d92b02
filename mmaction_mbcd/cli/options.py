"""The options that several tools share, and the config that they make."""

import argparse
import os

from mmengine.config import Config, DictAction

from ..datasets import SAMPLINGS
from ..errors import UsageError, require_file
from .data import (
    infer_class_counts,
    set_datasets,
    set_domains,
    set_modalities,
    suit_loaders,
    use_target_values,
)
from .settings_checks import check_settings


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share."""
    parser.add_argument("--work-dir", help="folder of logs and checkpoints")
    add_data_options(parser)
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that change the config, above all its data."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override settings of the config, e.g. train_cfg.max_epochs=2 "
        'key="[a,b]"; merged before the other options',
    )
    parser.add_argument(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="use only these modalities of the config, e.g. video audio",
    )
    parser.add_argument(
        "--target",
        nargs="+",
        metavar="DOMAIN",
        help="the unseen domain, or several (default: the config's; with --sources "
        "alone: every other domain)",
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        metavar="DOMAIN",
        help="the domains to train on (default: every domain but the target)",
    )
    parser.add_argument(
        "--held-out-classes",
        nargs="+",
        metavar="CLASS",
        help="leave the clips of these classes out of training and tests, for "
        "tools/evaluate.py --suites ood to ask whether the model notices",
    )
    parser.add_argument("--data-root", help="folder of the dataset")
    parser.add_argument(
        "--frame-store",
        metavar="FOLDER",
        help="read frames from this store, which tools/data/pack.py made (default: the "
        "config's; none: the data set's own files)",
    )
    parser.add_argument(
        "--sampling",
        choices=SAMPLINGS,
        help="which frames and sound are a sample: as in the published code, or with "
        "its oddities repaired (default: the config's)",
    )
    parser.add_argument(
        "--per-target-values",
        action="store_true",
        help="the values that the method's authors chose for this target and these "
        "modalities (method.by_target of the config: SimMMDG, MOOSA); merged last",
    )


def read_config(path: str) -> Config:
    """The config of a file.

    Raises:
        UsageError: If the file is missing, or its code cannot be run.
    """
    require_file(path, "config")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program: it raises anything
        raise UsageError(
            f"config {path} cannot be read: {type(error).__name__}: "
            + " ".join(str(error).split())
        ) from error


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config file and merges the options of :func:`add_common_options`.

    The file's data workers are limited to the cores; those of an option are not.
    """
    os.environ.setdefault("LOCAL_RANK", str(getattr(args, "local_rank", 0)))
    cfg = read_config(args.config)
    suit_loaders(cfg)
    check_settings(cfg, args.cfg_options)
    if args.data_root is not None:
        set_datasets(cfg, data_root=args.data_root)
    if args.modalities is not None:
        set_modalities(cfg, args.modalities)
    if args.target is not None or args.sources is not None:
        set_domains(cfg, args.target, args.sources)
    if args.held_out_classes is not None:
        set_datasets(cfg, held_out_classes=args.held_out_classes)
    if args.frame_store is not None:
        set_datasets(cfg, frame_store=args.frame_store)
    if args.sampling is not None:
        set_datasets(cfg, sampling=args.sampling)
    infer_class_counts(cfg)
    if args.per_target_values:
        use_target_values(cfg)
    cfg.launcher = getattr(args, "launcher", "none")
    return cfg
