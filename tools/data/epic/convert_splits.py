r"""Turn EPIC-Kitchens' annotation pickles (MM-SADA splits) into CSV files, once.

Example:
    python tools/data/epic/convert_splits.py DOWNLOADED_SPLITS \
        data/epic/MM-SADA_Domain_Adaptation_Splits

A pickle can run any code. These are read by an unpickler that admits tables and
refuses the rest; see ``mmaction_mbcd/preparation/epic_splits.py``.
``EPICKitchensDataset`` reads the CSV files alone. Both folders may be the same.
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

from rich import box
from rich.console import Console
from rich.table import Table

from mmaction_mbcd.datasets.epic_splits import (
    CLASSES,
    PARTICIPANTS,
    SPLITS,
    EpicSegment,
)
from mmaction_mbcd.errors import one_line_errors
from mmaction_mbcd.preparation.epic_splits import convert, read_splits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("in_dir", type=Path, help="folder of D{1,2,3}_{train,test}.pkl")
    parser.add_argument("out_dir", type=Path, help="folder for the CSV files")
    parser.add_argument(
        "--dry-run", action="store_true", help="read, check and count; write nothing"
    )
    return parser.parse_args(argv)


def summary(splits: dict[str, list[EpicSegment]], title: str) -> Table:
    """Segments per domain and split, per class, with the videos they are from."""
    # Compact, so that it fits in 80 columns.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for column in ("domain", "split"):
        table.add_column(column)
    for column in ("videos", "N", *CLASSES):
        table.add_column(column, justify="right")
    for domain, participant in PARTICIPANTS.items():
        parts = {split: splits[f"{domain}_{split}"] for split in SPLITS}
        parts["full"] = [segment for part in parts.values() for segment in part]
        for split, part in parts.items():
            labels = [segment.verb_class for segment in part]
            table.add_row(
                f"{domain} {participant}",
                split,
                str(len({segment.video_id for segment in part})),
                str(len(part)),
                *(str(labels.count(i)) for i in range(len(CLASSES))),
                end_section=split == "full",
            )
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0, or 2 after an error of the caller's."""
    args = parse_args(argv)
    with one_line_errors():
        try:
            splits = read_splits(args.in_dir)
            if not args.dry_run:
                convert(splits, args.out_dir)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    done = "dry run, nothing written" if args.dry_run else f"{len(splits)} CSV files"
    Console().print(summary(splits, f"{args.out_dir}: {done}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
