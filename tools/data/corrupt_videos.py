"""Make corrupted copies of videos, for example to compute their flow again.

Example:
    python tools/data/corrupt_videos.py data/hac/human/videos new/human/videos \
        --kind fog --severity 3
    python tools/data/extract_flow.py new/human/videos new/human/flow

Output keeps the relative path of a video; sound is not copied. The same command
continues a run that was stopped. To corrupt what an evaluation reads no copy is needed.
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

from mmaction_mbcd.cli import one_line_errors
from mmaction_mbcd.datasets.transforms.corruptions import (
    SEVERITIES,
    VIDEO_CORRUPTIONS,
)
from mmaction_mbcd.errors import UsageError
from mmaction_mbcd.preparation.corruption import VideoCorruption
from mmaction_mbcd.preparation.extraction import extract


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """One option per field of the extraction, with the same defaults."""
    default = VideoCorruption()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, help="folder, searched deeply, or file")
    parser.add_argument("out", type=Path, help="folder for the copies")
    parser.add_argument("--kind", choices=VIDEO_CORRUPTIONS, required=True)
    parser.add_argument("--severity", type=int, choices=SEVERITIES, required=True)
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="default: %(default)s"
    )
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        default=default.short_side,
        help="pixels of the shorter side after resizing, before the corruption; 0 to "
        "keep the size (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one for each core)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be done; write nothing"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make also what exists"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, 1 if a video failed, 2 after an error of the caller's."""
    args = vars(parse_args(argv))
    settings = {key: args.pop(key) for key in ("kind", "severity", "seed")}
    settings["short_side"] = args.pop("short_side") or None
    with one_line_errors():
        videos, out = args["videos"].resolve(), args["out"].resolve()
        if out == (videos.parent if videos.is_file() else videos):
            raise UsageError(
                f"the copies would replace the videos in {out}; name another folder"
            )
        return extract(extraction=VideoCorruption(**settings), **args)


if __name__ == "__main__":
    sys.exit(main())
