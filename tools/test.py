"""Evaluates a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [options]``.

The options are those of MMAction2's own tool but for drawing, and a few more:
which weights (``--weights``), which split (``--in-domain``), where to write the
numbers (``--out``).
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
        usage="%(prog)s CONFIG CHECKPOINT [options]", description="Evaluate a model."
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    cli.add_common_options(parser)
    parser.add_argument(
        "--weights",
        choices=["teacher", "student"],
        help="which weights of the checkpoint (default: the config's, the teacher's "
        "where it has one)",
    )
    parser.add_argument(
        "--in-domain",
        action="store_true",
        help="test on the held-out split of the source domains, not on the target",
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="test with what fits of a checkpoint that does not fit the model; the "
        "rest stays random, and the results say so",
    )
    parser.add_argument(
        "--out", metavar="JSON", help="write metrics, seed and sample counts here"
    )
    parser.add_argument(
        "--predictions",
        metavar="NPZ",
        help="keep what the model says of every clip here, for tables and intervals",
    )
    parser.add_argument(
        "--dump", metavar="PKL", help="write all predictions to this pickle file"
    )
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace):
    """The config file with all options merged."""
    cfg = cli.load_config(args)
    cli.require_file(args.checkpoint, "checkpoint")
    cli.set_work_dir(cfg, args.config, args.work_dir)
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.allow_partial = args.allow_partial
    if args.weights:
        cli.choose_weights(cfg, args.weights)
    if args.in_domain:
        cli.evaluate_in_domain(cfg)
    if args.predictions:
        cli.keep_predictions(cfg, args.predictions)
    if args.dump:
        cli.dump_predictions(cfg, args.dump)
    cli.prepare_cpu_launch(cfg)
    return cfg


def main(argv: Sequence[str] | None = None) -> dict:
    """Evaluates, prints the metrics and returns them."""
    args = parse_args(argv)
    with cli.one_line_errors():
        cfg = build_config(args)
        runner = cli.build_runner(cfg)
        meta = cli.CheckpointMeta(
            config=args.config,
            checkpoint=args.checkpoint,
            weights=cli.chosen_weights(cfg),
            in_domain=args.in_domain,
            allow_partial=args.allow_partial,
        )
        runner.register_hook(meta)
        with cli.errors_of_the_start(runner):
            metrics = runner.test()
        cli.print_results(metrics, title=f"{args.config}\n{args.checkpoint}")
        if args.out:
            cli.write_results(args.out, metrics, **meta.facts)
    return metrics


if __name__ == "__main__":
    main()
