"""The demo of the README: data, three methods, a table and a figure.

``python tools/demo.py [--out demo_out]``
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

from mmaction_mbcd.errors import one_line_errors
from mmaction_mbcd.experiments.demo import DemoOptions, run_demo
from mmaction_mbcd.experiments.running import RunError


def main() -> int:
    """Parses the command line and runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["erm", "ema", "mbcd"],
        help="configs below configs/mbcd/synth_action",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: the config's")
    parser.add_argument("--train-per-class", type=int, help="clips a domain")
    parser.add_argument("--test-per-class", type=int, help="clips a domain")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    synth = {
        key: value
        for key in ("train_per_class", "test_per_class")
        if (value := getattr(args, key)) is not None
    }
    options = DemoOptions(
        repo=Path(__file__).resolve().parent.parent,
        out=args.out,
        methods=args.methods,
        seed=args.seed,
        synth=synth,
        cfg_options=args.cfg_options,
        epochs=args.epochs,
    )
    advice = "the same command keeps the clips and trains anew"
    with one_line_errors(lambda: advice):
        try:
            run_demo(options)
        except (RunError, ValueError) as error:
            print(f"demo.py: error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
