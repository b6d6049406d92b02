"""Measures what reading a clip costs, from files and from frame stores.

``python tools/benchmark/pipeline.py`` writes clips of 340 x 256 pixels in HAC's layout,
packs them with each codec, and reads the same clips in turn by MMAction2's transforms,
from the files, and from each store: CPU seconds of one process of one thread, as a data
worker is. Ratios are to the first row, pair by pair: what else the machine does reaches
both. With ``--config`` and ``--data-root`` it reads your own clips.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from rich.console import Console

from mmaction_mbcd.benchmark import command, reading, report
from mmaction_mbcd.benchmark.clips import write_hac_clips
from mmaction_mbcd.cli import load_config
from mmaction_mbcd.cli.options import add_data_options
from mmaction_mbcd.datasets.frame_store import CODECS
from mmaction_mbcd.errors import UsageError, one_line_errors

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mbcd" / "hac" / "erm.py"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", help="read its training clips; needs --data-root (default: HAC's)"
    )
    add_data_options(parser)
    parser.add_argument(
        "--codecs", nargs="+", choices=CODECS, default=[*CODECS],
        help="of the stores; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--clips", type=command.positive, default=12, help="default: 12"
    )
    parser.add_argument("--pairs", type=command.positive, default=5, help="default: 5")
    parser.add_argument(
        "--frames", type=command.positive, default=100,
        help="of a generated clip; default: 100",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=command.positive, nargs=2, default=[340, 256],
        metavar=("W", "H"), help="of a generated clip; default: 340 256",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=command.positive,
        help="also the clips a second that so many data workers deliver",
    )  # fmt: skip
    parser.add_argument(
        "--profile", action="store_true", help="also each way's ten largest entries"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path, console: Console) -> list[dict]:
    """Prints the tables; returns what the JSON file holds of them."""
    if args.config and not args.data_root:
        raise UsageError("--config needs --data-root: the folder of its clips")
    if args.frame_store is not None:
        raise UsageError("--frame-store: it packs stores of its own, see --codecs")
    stock = args.config is None
    args.config = args.config or str(CONFIG)
    if args.data_root is None:
        args.data_root = str(folder / "clips")
        write_hac_clips(Path(args.data_root), args.clips, args.frames, tuple(args.size))
    cfg = load_config(args)
    stores = reading.stores_of(cfg, folder, args.codecs)
    ways = reading.ways_of_reading(
        cfg, {codec: root for codec, (root, *_) in stores.items()}, stock
    )
    clips = min(args.clips, *(len(dataset) for dataset in ways.values()))
    rows = reading.compare_readings(ways, clips, args.pairs)
    for row in rows:
        if row.name in stores:
            _, row.stored, row.packed = stores[row.name]
    facts = report.environment("cpu")
    console.print(report.reading_table(rows, facts))
    found = [dict(title="reading", ways=[vars(row) for row in rows])]
    if args.workers:
        speeds = {
            name: reading.read_by_workers(dataset, args.workers, 4, 8 * clips)
            for name, dataset in ways.items()
        }
        for name, speed in speeds.items():
            print(f"data workers {args.workers}, {name}: {speed:.1f} clips/s")
        found.append(
            dict(title="workers", workers=args.workers, clips_per_second=speeds)
        )
    for name, dataset in ways.items() if args.profile else ():
        entries = reading.profile_reading(dataset, clips)
        console.print(report.profile_table(f"{name}: largest entries", entries, "clip"))
        found.append(dict(title=f"profile of {name}", entries=entries))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder), console)
        if args.json is not None:
            facts = report.environment("cpu")
            report.write_json(args.json, dict(environment=facts, results=found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
