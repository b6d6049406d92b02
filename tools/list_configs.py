"""Prints what the configs resolve to, for comparison with the papers.

``python tools/list_configs.py`` lists epochs, batch, rates and losses of every config
below configs/mbcd; ``--protocol CONFIG`` lists clips and steps of every choice of
sources and target, from the dataset's annotation files.
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

import pandas as pd
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmaction_mbcd.analysis.config_table import find_configs, protocol, settings


def show(table: pd.DataFrame, title: str, csv: Path | None) -> None:
    """Prints a table, and writes it if a file is given."""
    shown = Table(title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in table:
        right = pd.api.types.is_numeric_dtype(table[column])
        shown.add_column(column, justify="right" if right else "left")
    for row in table.itertuples(index=False):
        shown.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    if csv is not None:
        table.to_csv(csv, index=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent / "configs" / "mbcd"
    parser.add_argument(
        "folder", type=Path, nargs="?", default=root, help="default: configs/mbcd"
    )
    parser.add_argument("--protocol", type=Path, metavar="CONFIG")
    parser.add_argument("--data-root", help="with --protocol: folder of the dataset")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    try:
        if args.protocol is not None:
            # Each dataset would report its clips in both splits again and again.
            MMLogger.get_current_instance().setLevel("WARNING")
            table = protocol(args.protocol, args.data_root)
            show(table, f"{args.protocol}: clips and steps", args.csv)
        else:
            configs = find_configs(args.folder)
            if not configs:
                raise FileNotFoundError(f"no configs below {args.folder}")
            show(settings(configs), f"{len(configs)} configs", args.csv)
    except (OSError, ValueError) as error:
        print(f"list_configs.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
