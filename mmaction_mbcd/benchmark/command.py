"""What the benchmarks' command lines share."""

from __future__ import annotations

import argparse

import torch
from mmengine.config import DictAction

from ..errors import UsageError
from .training import SIZES


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return number


def add_size_options(parser: argparse.ArgumentParser) -> None:
    """Device, size and precision."""
    parser.add_argument(
        "--device", choices=["cpu", "cuda"],
        help="default: a GPU if there is one",
    )  # fmt: skip
    parser.add_argument(
        "--size", choices=list(SIZES), default="small",
        help="small: networks of the synthetic data (default); paper: SlowFast-R101, "
        "SlowOnly-R50 and ResNet-18; random weights in both",
    )  # fmt: skip
    parser.add_argument("--batch", type=positive, help="clips of a step")
    parser.add_argument("--pixels", type=positive, help="side of a frame")
    parser.add_argument("--clip-length", type=positive, help="frames of the video clip")
    parser.add_argument(
        "--amp", nargs="?", const="float16", choices=["float16", "bfloat16"],
        help="mixed precision; needs a GPU",
    )  # fmt: skip
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, metavar="K=V",
        help="settings of every config",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")


def chosen_device(args: argparse.Namespace) -> str:
    """The device that was asked for, or the best one.

    Raises:
        UsageError: For CUDA where there is none, and for mixed precision without.
    """
    there = torch.cuda.is_available()
    if args.amp is not None and not (there and args.device != "cpu"):
        raise UsageError("--amp needs a GPU; leave it out to measure on the CPU")
    if args.device == "cuda" and not there:
        raise UsageError(
            "--device cuda: torch finds no GPU here; leave the option out to measure "
            "on the CPU"
        )
    return args.device or ("cuda" if there else "cpu")
