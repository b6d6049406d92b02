"""Fetch the pretrained weights that the paper starts from.

Example:
    python tools/data/weights/download.py
    python tools/data/weights/download.py checkpoints --only video audio

SlowFast-R101 for video and SlowOnly-R50 for flow are MMAction2's, ResNet-18 for audio
is VGGSound's; the configs look for them in ``checkpoints/``. MMAction2 publishes the
first digits of the SHA-256, which are checked. VGGSound publishes none: the tool prints
what it got. The servers could not be tried when this was written.
"""

import argparse
import sys
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmaction_mbcd.preparation.downloads.runs import add_options, exit_code, run
from mmaction_mbcd.preparation.downloads.weights import WEIGHTS, weight_files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("checkpoints"), help="checkpoints"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS)
    )
    add_options(parser, archives=False)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, 1 if something failed, 2 after an error of the caller's."""
    args = parse_args(argv)
    folder, names = args.folder, args.only
    return exit_code(lambda: run(folder, weight_files(folder, names), args))


if __name__ == "__main__":
    sys.exit(main())
