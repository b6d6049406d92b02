"""Check all files of a data set before training on it.

Example:
    python tools/data/check.py configs/mbcd/hac/mbcd.py --csv problems.csv
    python tools/data/check.py configs/mbcd/hac/mbcd.py --quick --allow silent

Reads all clips of the config's train, val and test datasets as training does, and lists
what is missing, damaged, silent, or makes a decoder hang or crash; see
``mmaction_mbcd/preparation/check.py`` for what these mean. Exit code 0: nothing is
wrong, 1: something is, 2: the config or the command line is.
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
from mmaction_mbcd.preparation.check import KINDS, check, training_problems


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s CONFIG [options]", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", help="config file")
    cli.add_data_options(parser)
    parser.add_argument(
        "--workers", type=int, help="processes that read (default: one for each core)"
    )
    parser.add_argument("--csv", metavar="FILE", help="list every problem here")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        choices=KINDS,
        metavar="KIND",
        help=f"report, but do not fail because of: {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the first, the middle and the last frame of a clip, not all",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code."""
    args = parse_args(argv)
    with cli.one_line_errors():
        every_target = not (args.target or args.sources or cli.has_target(args.config))
        if every_target:  # any one will do: the files are the same
            args.target = cli.domains_of(args.config, args.data_root)[:1]
        cfg = cli.load_config(args)
        problems = training_problems(cfg, every_target)
        code = check(cfg, args.workers, args.quick, args.allow, args.csv)
    for problem in problems:
        print(f"training cannot start: {problem}")
    return code or int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
