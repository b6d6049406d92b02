"""Compute the optical flow of videos, in HAC's or EPIC-Kitchens' layout.

Example:
    python tools/data/extract_flow.py data/hac/human/videos data/hac/human/flow
    python tools/data/extract_flow.py VIDEOS data/epic/flow/train/D1 --layout frames \
        --fps-divisor 2

Output keeps the relative path of a video X.mp4: X_flow_x.mp4 and X_flow_y.mp4, or
X/{u,v}/frame_0000000001.jpg. The same command continues a run that was stopped. See
``mmaction_mbcd/preparation/flow.py`` for what the grey values mean.

TV-L1 takes a second or two per pair of frames and core, DIS a hundredth of that. How
long it will take in all is said after ten seconds.
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
from mmaction_mbcd.preparation.extraction import extract
from mmaction_mbcd.preparation.flow import LAYOUTS, METHODS, FlowExtraction


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """One option per field of the extraction, with the same defaults."""
    default = FlowExtraction()
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("videos", type=Path, help="folder, searched deeply, or file")
    parser.add_argument("out", type=Path, help="folder for the flow")
    parser.add_argument(
        "--method", choices=METHODS, default=default.method, help="default: %(default)s"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=default.layout,
        help="a pair of videos (HAC) or two folders of images (EPIC-Kitchens); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=default.bound,
        help="pixels per frame that 8 bits span; what is beyond is clipped "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        default=default.short_side,
        help="pixels of the shorter side after resizing, 0 to keep the size; flow is "
        "in these pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--fps-divisor",
        type=int,
        default=default.fps_divisor,
        metavar="N",
        help="use every N-th frame (EPIC-Kitchens counts flow at half rate: 2; "
        "default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one for each core; one for raft)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be done; write nothing"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make also what exists"
    )
    parser.add_argument(
        "--device",
        default=default.device,
        help="where raft runs (default: %(default)s)",
    )
    parser.add_argument(
        "--raft-weights",
        metavar="FILE",
        help="state dict of torchvision's raft_large or raft_small (default: the "
        "published one is downloaded)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, 1 if a video failed, 2 after an error of the caller's."""
    args = vars(parse_args(argv))
    args["short_side"] = args["short_side"] or None
    run = {
        key: args.pop(key)
        for key in ("videos", "out", "workers", "dry_run", "overwrite")
    }
    with one_line_errors():
        return extract(extraction=FlowExtraction(**args), **run)


if __name__ == "__main__":
    sys.exit(main())
