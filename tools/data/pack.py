"""Decode the clips of a config once, into a frame store that training reads faster.

Example:
    python tools/data/pack.py configs/mbcd/hac/mbcd.py --dry-run
    python tools/data/pack.py configs/mbcd/hac/mbcd.py --out /fast/hac_frames
    python tools/train.py configs/mbcd/hac/mbcd.py --frame-store /fast/hac_frames

Every frame becomes an image of its own, in the size to which the config's pipelines
resize it first, so that a training read decodes only the frames that it samples. The
sources must stay where they are: an entry whose source has changed is refused, and made
again by the same command, which also goes on after a kill. See
``mmaction_mbcd/datasets/frame_store.py`` for the format, docs/performance.md for what
each codec costs.
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
from mmaction_mbcd.datasets.frame_store import CODECS
from mmaction_mbcd.preparation.packing import pack, store_settings, verify


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s CONFIG [options]", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", help="config file")
    cli.add_data_options(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="the store (default: frame_store in the data set's folder)",
    )
    parser.add_argument(
        "--codec",
        choices=CODECS,
        default="jpeg",
        help="jpeg; png and pnm give bit for bit what the sources give: png is about "
        "five times as large and slower to read, pnm is not compressed and the fastest "
        "where the disk is (default: %(default)s)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=92,
        metavar="N",
        help="of JPEG, 1 to 100 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be made, how much room and time it takes",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a store that was made with other settings",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all sources and entries again, and say what is missing, stale or "
        "damaged; writes nothing",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, 1 if a clip failed, 2 after an error of the caller's."""
    args = parse_args(argv)
    with cli.one_line_errors():
        if not (args.target or args.sources or cli.has_target(args.config)):
            # Any one will do: the files are the same.
            args.target = cli.domains_of(args.config, args.data_root)[:1]
        cfg = cli.load_config(args)
        out = args.out or args.frame_store
        out = Path(out or Path(cli.first_dataset(cfg)["data_root"], "frame_store"))
        if args.verify:
            return verify(cfg, out, args.workers)
        settings = store_settings(cfg, args.codec, args.quality)
        return pack(cfg, out, settings, args.workers, args.dry_run, args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
