"""Fetch Human-Animal-Cartoon from the Hugging Face Hub.

Example:
    python tools/data/hac/download.py data/hac --dry-run
    python tools/data/hac/download.py data/hac

It lists the files of the dataset's repository, fetches them, unpacks the archives among
them and brings everything into the layout that ``HACDataset`` reads; afterwards,
``tools/data/check.py`` says whether all clips are there. A token in ``HF_TOKEN`` is
sent to the endpoint's host only. Run it again after any interruption: it goes on. The
server could not be tried when this was written.
"""

import argparse
import os
import sys
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmaction_mbcd.preparation.downloads.hac import (
    ENDPOINT,
    EXCLUDE,
    REPO,
    download_hac,
    list_dataset,
)
from mmaction_mbcd.preparation.downloads.runs import add_options, exit_code


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_root", type=Path, help="folder of the data set")
    parser.add_argument("--repo", default=REPO, metavar="OWNER/NAME")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument(
        "--endpoint",
        default=ENDPOINT,
        metavar="URL",
        help="the Hub or a mirror",
    )
    parser.add_argument(
        "--exclude",
        nargs="*",
        default=EXCLUDE,
        metavar="PATTERN",
        help="files to leave out (default: *epic*, the sounds of EPIC-Kitchens)",
    )
    add_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, 1 if something failed, 2 after an error of the caller's."""
    args = parse_args(argv)

    def command() -> int:
        endpoint, token = args.endpoint.rstrip("/"), os.environ.get("HF_TOKEN", "")
        listed = list_dataset(args.repo, args.revision, endpoint, token)
        return download_hac(args.data_root, listed, args, args.exclude)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
