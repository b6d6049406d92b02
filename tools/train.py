"""Trains a model: ``python tools/train.py CONFIG [options]``.

The options are those of MMAction2's own tool and a few more. Differences: ``--seed``
wins over the config, the default work directory names seed and modalities, ``--amp``
knows this package's optimizer wrappers, machines without a GPU train under torchrun.
"""

import argparse
import sys
from collections.abc import Sequence

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmaction_mbcd import cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s CONFIG [options]", description="Train a model."
    )
    parser.add_argument("config", help="config file")
    cli.add_common_options(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value from the latest one of "
        "the work directory",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="float16",
        choices=["float16", "bfloat16"],
        help="train in mixed precision (default: float16); needs a GPU",
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="do not validate during training"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size over all processes divided by "
        "the config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="random seed, before the config's (default: the config's, or a random "
        "one that the log names)",
    )
    parser.add_argument(
        "--diff-rank-seed",
        action="store_true",
        help="give each process a seed of its own",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits again on a GPU, too: deterministic cuDNN and cuBLAS, "
        "slower; an operation that has no such form is refused by name",
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace):
    """The config file with all options merged."""
    cfg = cli.load_config(args)
    cli.set_work_dir(
        cfg,
        args.config,
        args.work_dir,
        args.modalities,
        args.seed,
        args.target,
        args.sources,
        args.held_out_classes,
    )
    cli.set_randomness(cfg, args.seed, args.diff_rank_seed, args.deterministic)
    cli.set_resume(cfg, args.resume)
    if args.no_validate:
        cli.disable_validation(cfg)
    if args.auto_scale_lr:
        cli.enable_auto_scale_lr(cfg)
    if args.amp:
        cli.enable_amp(cfg, args.amp)
    cli.prepare_cpu_launch(cfg)
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and says where the best checkpoint lies."""
    args, cfg = parse_args(argv), None
    with cli.one_line_errors(lambda: cli.continue_advice(cfg)):
        cfg = build_config(args)
        cli.require_weights(cfg)
        runner = cli.build_runner(cfg)
        with cli.errors_of_the_start(runner):
            runner.train()
        cli.announce_checkpoints(runner)


if __name__ == "__main__":
    main()
