"""Extract the sound tracks of videos as mono 16-bit wav files.

Example:
    python tools/data/extract_audio.py data/hac/human/videos data/hac/human/audio

Output keeps the relative path of a video X.mp4: X.wav. A video without a sound track
gets no file, which the datasets take for a missing modality. The same command
continues a run that was stopped.
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
from mmaction_mbcd.preparation.audio import AudioExtraction
from mmaction_mbcd.preparation.extraction import extract


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("videos", type=Path, help="folder, searched deeply, or file")
    parser.add_argument("out", type=Path, help="folder for the wav files")
    parser.add_argument(
        "--rate",
        type=int,
        default=AudioExtraction().rate,
        help="samples per second (default: %(default)s)",
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
    extraction = AudioExtraction(rate=args.pop("rate"))
    with one_line_errors():
        return extract(extraction=extraction, **args)


if __name__ == "__main__":
    sys.exit(main())
