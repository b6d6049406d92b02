r"""Fetch the frames and flow of EPIC-Kitchens that the MM-SADA splits use.

Example:
    python tools/data/epic/download.py data/epic --splits DOWNLOADED_SPLITS --dry-run
    python tools/data/epic/download.py data/epic --splits DOWNLOADED_SPLITS
    python tools/data/epic/download.py data/epic --splits DOWNLOADED_SPLITS \
        --parts --audio-zip EPIC-KITCHENS-audio.zip

It makes ``{rgb,flow}/{train,test}/D1/P08_01/``, as ``EPICKitchensDataset`` reads it,
where train and test are MM-SADA's. Run it again after any interruption: it goes on.

The data's terms are EPIC-Kitchens' own; please read them on
https://epic-kitchens.github.io. The server could not be tried when this was written:
``--dry-run`` asks it for every file first. ``--base-url`` names a mirror.

EPIC-Kitchens publishes no sound files. Either take a zip that has a ``P08_01.wav`` per
video (``--audio-zip``), or make them from the videos with
``tools/data/extract_audio.py``.
"""

import argparse
import sys
import zipfile
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from mmaction_mbcd.datasets.epic_splits import PARTICIPANTS
from mmaction_mbcd.preparation.downloads.epic import (
    EPIC_PARTS,
    EPIC_URL,
    epic_files,
    epic_videos,
    unpack_epic_audio,
)
from mmaction_mbcd.preparation.downloads.runs import add_options, exit_code, run
from mmaction_mbcd.preparation.epic_splits import read_splits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_root", type=Path, help="folder of the data set")
    parser.add_argument(
        "--splits",
        type=Path,
        help="folder of D{1,2,3}_{train,test}.{csv,pkl} (default: "
        "DATA_ROOT/MM-SADA_Domain_Adaptation_Splits)",
    )
    parser.add_argument(
        "--domains", nargs="+", choices=list(PARTICIPANTS), default=list(PARTICIPANTS)
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        default=list(EPIC_PARTS),
        choices=list(EPIC_PARTS),
        help="nothing after it for the sound only",
    )
    parser.add_argument("--base-url", default=EPIC_URL, metavar="URL")
    parser.add_argument(
        "--audio-zip", type=Path, metavar="FILE", help="a zip of wavs, to be unpacked"
    )
    add_options(parser)
    return parser.parse_args(argv)


def download(args: argparse.Namespace) -> int:
    """Fetch the frames, then unpack the sounds; 0, or 1 if something failed."""
    root, sounds = args.data_root, args.audio_zip
    splits = args.splits or root / "MM-SADA_Domain_Adaptation_Splits"
    suffix = ".csv" if any(splits.glob("D?_*.csv")) else ".pkl"
    videos = epic_videos(read_splits(str(splits), suffix), args.domains)
    if sounds and not zipfile.is_zipfile(sounds):
        raise ValueError(f"{sounds} is not a zip file")
    code = 0
    if args.parts or args.dry_run:
        code = run(root, epic_files(root, videos, args.parts, args.base_url), args)
    if sounds and not args.dry_run:
        code |= unpack_epic_audio(sounds, root, videos)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, 1 if something failed, 2 after an error of the caller's."""
    args = parse_args(argv)
    return exit_code(lambda: download(args))


if __name__ == "__main__":
    sys.exit(main())
