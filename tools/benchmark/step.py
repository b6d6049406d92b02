"""Measures a training step of every method beside ERM's.

``python tools/benchmark/step.py [METHOD ...]``. Blocks of steps of ERM and of the
method alternate in one run, and each pair gives a ratio: what else the machine does
reaches both. The row of ERM is ERM against itself: its range is what the machine adds.
``--change KEY=VALUE`` measures each method with that setting against itself without.
Seconds are CPU seconds on a CPU. docs/performance.md says what each column is.
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

from mmengine.config import DictAction
from rich.console import Console

from mmaction_mbcd import progress
from mmaction_mbcd.benchmark import command, report, steps
from mmaction_mbcd.benchmark.training import Setting, method_configs
from mmaction_mbcd.errors import UsageError, one_line_errors

ROOT = Path(__file__).resolve().parents[2] / "configs" / "mbcd"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "configs", nargs="*", metavar="METHOD",
        help="names such as mbcd, or paths of configs; default: all methods",
    )  # fmt: skip
    command.add_size_options(parser)
    parser.add_argument("--pairs", type=command.positive, default=5, help="default: 5")
    parser.add_argument(
        "--steps", type=command.positive, default=3, help="of a block; default: 3"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="each block in a process of its own"
    )
    parser.add_argument(
        "--no-memory", action="store_false", dest="memory",
        help="spare the process that measures the peak",
    )  # fmt: skip
    parser.add_argument(
        "--vary", nargs="+", metavar=("WHAT", "N"),
        help=f"measure at several sizes: {' | '.join(steps.VARIED)}, then numbers",
    )  # fmt: skip
    parser.add_argument(
        "--change", nargs="+", action=DictAction, metavar="K=V",
        help="measure each METHOD with these settings against itself without",
    )  # fmt: skip
    parser.add_argument(
        "--profile", action="store_true",
        help="also each method's ten largest entries of torch.profiler",
    )  # fmt: skip
    return parser.parse_args(argv)


def settings_of(args: argparse.Namespace) -> dict[str, Setting]:
    """``{title: setting}``, one unless something is varied."""
    base = Setting(
        config="",
        batch=args.batch,
        pixels=args.pixels,
        clip_length=args.clip_length,
        amp=args.amp,
        device=command.chosen_device(args),
        changes=tuple(args.cfg_options.items()),
    )
    if args.vary is None:
        return {f"A step at size {args.size}": base}
    what, *numbers = args.vary
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"--vary {what} takes numbers; got {' '.join(numbers)}")
    values = [int(number) for number in numbers]
    settings = steps.varied(base, what, values)
    return {
        f"A step at size {args.size}, {what} {value}": setting
        for value, setting in zip(values, settings, strict=True)
    }


def compared_configs(
    configs: Sequence[str], change: dict | None
) -> list[list[tuple[str, dict]]]:
    """What is compared with the first of its group: ``[[(config, change), ...], ...]``.

    All methods with ERM or, with a change, each method with itself.
    """
    if change is None:
        return [[(config, {}) for config in configs]]
    return [[(config, {}), (config, change)] for config in configs]


def measure(args: argparse.Namespace, console: Console) -> list[dict]:
    """Prints the tables; returns what the JSON file holds of them."""
    settings = settings_of(args)
    configs = method_configs(ROOT, args.size, args.configs)
    groups = compared_configs(configs, args.change)
    effort = steps.Effort(args.pairs, args.steps, args.fresh, args.memory)
    facts = report.environment(next(iter(settings.values())).device)
    units = len(settings) * sum(map(len, groups)) * (2 * effort.pairs + 1)
    found = []
    with progress.Meter("step", "blocks", units) as meter:
        with progress.counting_into(meter.sender):
            for title, setting in settings.items():
                for group in groups:
                    compared = [setting.of(c).changed(change) for c, change in group]
                    rows = list(steps.compare(compared, effort))
                    console.print(report.step_table(title, rows, facts))
                    methods = [row.as_dict() for row in rows]
                    found.append(dict(title=title, methods=methods))
    for config in configs if args.profile else ():
        setting = next(iter(settings.values())).of(config)
        entries = steps.profile(setting)
        console.print(report.profile_table(f"{setting.name}: largest entries", entries))
        found.append(dict(title=f"profile of {setting.name}", entries=entries))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with one_line_errors():
        found = measure(args, console)
        if args.json is not None:
            facts = report.environment(command.chosen_device(args))
            report.write_json(args.json, dict(environment=facts, results=found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
