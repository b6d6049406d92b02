"""Measures an epoch of training: waiting for data, steps, clips per second.

``python tools/benchmark/epoch.py [CONFIG]``. Without a folder of data it makes some in
a temporary one: the synthetic actions of tools/data/make_synth_action.py, and with
``--size paper`` clips of 340 x 256 pixels in HAC's layout, read from H.264 or, with
``--frame-store jpeg``, from a frame store. ``--random`` trains on random clips in
memory, at any size, so that nothing is read. Behind the first step the clips per second
are projected to the paper's 20 epochs of 399 steps of 16 clips. ``--amp`` measures
mixed precision beside float32, in turns.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

try:
    import mmaction_mbcd  # noqa: F401  first: it repairs MMAction2
except ModuleNotFoundError as error:  # outside the environment
    sys.exit(f"{error}: run `make setup` once, then `source .venv/bin/activate`")
except KeyboardInterrupt:  # the import takes seconds
    sys.exit(130)

from rich.console import Console

from mmaction_mbcd import cli, progress
from mmaction_mbcd.benchmark import command, epochs, report
from mmaction_mbcd.benchmark.clips import write_hac_clips
from mmaction_mbcd.benchmark.training import SIZES, Setting
from mmaction_mbcd.datasets.frame_store import CODECS, StoreSettings
from mmaction_mbcd.datasets.synth import SynthConfig, generate
from mmaction_mbcd.errors import UsageError, one_line_errors
from mmaction_mbcd.preparation.packing import pack, store_settings

ROOT = Path(__file__).resolve().parents[2] / "configs" / "mbcd"
MADE = {"SynthActionDataset", "HACDataset"}
STEPS, DISTINCT = 20, 16  # of clips in HAC's layout: steps to make them for, contents


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="default: MBCD's of the size")
    command.add_size_options(parser)
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data-root", metavar="FOLDER", help="of the config's data set")
    data.add_argument("--random", action="store_true", help="random clips in memory")
    parser.add_argument(
        "--frame-store", metavar="|".join([*CODECS, "FOLDER"]),
        help="pack the clips that are made, or, with --data-root, read its store there",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="data workers of each process")
    parser.add_argument(
        "--steps", type=command.positive, help="at most; default: the whole epoch"
    )
    parser.add_argument(
        "--epochs", type=command.positive, default=3,
        help="of each precision; default: 3",
    )  # fmt: skip
    parser.add_argument(
        "--train-per-class", type=command.positive, default=20,
        help="of the clips that are made; default: 20",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=command.positive, default=1,
        help="under torchrun, on NCCL with GPUs and gloo without; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--project", nargs=2, action="append", default=[], metavar=("N", "GB/S"),
        help="project to N processes with that bandwidth between them; may be repeated",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        args.project = [(int(n), float(speed)) for n, speed in args.project]
    except ValueError:
        parser.error("--project takes a number of processes and gigabytes per second")
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Setting]:
    """``{precision: setting}``, float32 first."""
    config = args.config or str(ROOT / SIZES[args.size] / "mbcd.py")
    made = not (args.random or args.data_root)
    if made and args.size == "paper" and not args.config:
        config = str(ROOT / "hac" / "mbcd.py")
    plain = Setting(
        config=config,
        batch=args.batch,
        pixels=args.pixels,
        clip_length=args.clip_length,
        device=command.chosen_device(args),
        changes=tuple(args.cfg_options.items()),
    )
    settings = {"float32": plain}
    if args.amp is not None:
        settings[args.amp] = replace(plain, amp=args.amp)
    if not args.random and (args.pixels or args.clip_length):
        raise UsageError(
            "--pixels and --clip-length are those of random clips; real ones have the "
            "config's: add --random, or leave them out"
        )
    kind = made and cli.read_config(config).train_dataloader.dataset.type
    if made and kind not in MADE:
        raise UsageError(
            f"{config} reads a {kind}, which cannot be made here: give --data-root, or "
            "--random"
        )
    if args.frame_store is not None:
        if args.random:
            raise UsageError("--frame-store: random clips are in memory already")
        if made and args.frame_store not in CODECS:
            raise UsageError(
                f"--frame-store {args.frame_store} needs --data-root; the clips that "
                f"are made are packed with one of {', '.join(CODECS)}"
            )
        if not made:
            StoreSettings.load(args.frame_store)
    return settings


def measure(
    args: argparse.Namespace, data_root: str | None, frame_store: str | None
) -> dict[str, list]:
    """``{precision: [figures of each epoch]}``, measured in turns."""
    settings = settings_of(args)
    launcher = "pytorch" if "RANK" in os.environ else "none"
    found = {name: [] for name in settings}
    for _ in range(args.epochs):
        for name, setting in settings.items():
            figures = epochs.measure_epoch(
                setting, data_root, args.steps, args.workers, launcher, frame_store
            )
            found[name].append(figures)
            progress.count()
    return found


@contextmanager
def clips(args: argparse.Namespace) -> Iterator[tuple[str | None, str | None]]:
    """Folders of data and store, made unless they are given; None for random clips."""
    if args.random or args.data_root:
        yield args.data_root, args.frame_store
        return
    config = settings_of(args)["float32"].config
    with tempfile.TemporaryDirectory() as folder:
        cfg, root = cli.read_config(config), Path(folder, "clips")
        if cfg.train_dataloader.dataset.type == "HACDataset":
            batch = (args.batch or cfg.train_dataloader.batch_size) * args.processes
            write_hac_clips(root, batch * (args.steps or STEPS), distinct=DISTINCT)
        else:
            one = SynthConfig(train_per_class=args.train_per_class, test_per_class=1)
            generate(root, one, workers=1, progress=False)
        store = args.frame_store and str(Path(folder, "store"))
        if store:
            cli.set_datasets(cfg, data_root=str(root))
            said = io.StringIO()  # the bar is on stderr
            with redirect_stdout(said):
                code = pack(cfg, store, store_settings(cfg, args.frame_store))
            if code:
                raise UsageError(f"the clips could not be packed: {said.getvalue()}")
        yield str(root), store


def run_here(
    args: argparse.Namespace, data_root: str | None, frame_store: str | None
) -> None:
    """Measures in this process, which may be one of several; the first one prints."""
    total = args.epochs * (1 + (args.amp is not None))
    with progress.Meter("training", "epochs", total) as meter:
        with progress.counting_into(meter.sender):
            found = measure(args, data_root, frame_store)
    if os.environ.get("RANK", "0") != "0":
        return
    facts = report.environment(command.chosen_device(args))
    console = Console(width=None if sys.stdout.isatty() else 120)
    reads = "random clips" if args.random else "files"
    if frame_store is not None:
        reads = f"a frame store ({StoreSettings.load(frame_store).describe()})"
    console.print(report.epoch_table(found, reads, facts))
    for processes, speed in args.project:
        minutes = statistics.median(
            epochs.projected_minutes(each, processes, speed * 1e9)
            for each in found["float32"]
        )
        text = f"20 epochs on {processes} processes at {speed:g} GB/s"
        console.print(f"{text}: {minutes:,.1f} min", highlight=False)
    if args.json is not None:
        rows = {name: [each.as_dict() for each in own] for name, own in found.items()}
        numbers = dict(environment=facts, reads=reads, results=rows)
        report.write_json(args.json, numbers)


def run_torchrun(
    argv: Sequence[str], processes: int, data_root: str | None, frame_store: str | None
) -> int:
    """The same command in several processes; torchrun's exit code."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    line = [sys.executable, *torchrun, str(processes), __file__, *argv]
    if data_root is not None:
        line += ["--data-root", data_root]  # the last one counts
    if frame_store is not None:
        line += ["--frame-store", frame_store]
    return subprocess.run(line, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; starts torchrun for several processes."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    with one_line_errors():
        settings_of(args)  # refuses what cannot be measured
        with clips(args) as folders:
            if args.processes > 1 and "RANK" not in os.environ:
                return run_torchrun(argv, args.processes, *folders)
            run_here(args, *folders)
    return 0


if __name__ == "__main__":
    sys.exit(main())
