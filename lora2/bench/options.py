"""What can be typed after scripts/bench.py, and what a device takes where nothing is typed."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from lora2.bench import against
from lora2.bench.encoders import SHAPES, shaped
from lora2.bench.lengths import known_lengths
from lora2.bench.methods import METHODS
from lora2.bench.step import AUTOCAST

ENCODERS = ("deberta-v3-base", "roberta-large")
TABLE2 = "table2"  # the part with layers and a batch of its own
TABLE2_BATCH = 32  # sequences; the paper's
DEPTHS = [12, 24, 48]
RANKS = [1, 2, 4, 8, 16, 32, 64]
PRECISION = "fp32"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A device's defaults; None stands for the published size."""

    layers: int | None  # of the encoders in step, scaling over ranks, profile and against
    table2_layers: int | None
    narrow: int | None  # hidden size in scaling over layers
    batch: int  # sequences in micro, step and scaling
    tokens: int  # of each
    rounds: int
    table2_rounds: int
    batches: int  # drawn for each task
    table2_methods: tuple[str, ...]


SIZES = {
    "cuda": Sizes(None, None, None, 32, 128, 50, 32, 8, tuple(METHODS)),
    "cpu": Sizes(3, 1, 128, 4, 48, 15, 3, 2, ("lora-r8", "adalora-r8", "lora2-k1", "lora2-k8")),
}


def parse(argv: Sequence[str], about: str | None, parts: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Args:
        argv: the words.
        about: what ``--help`` says first.
        parts: what ``--only`` may name.

    Raises:
        SystemExit: an unknown option or value, or --device cuda without one; the message says so.
    """
    parser = _parser(about, parts)
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if problem := _problem(args):
        parser.error(problem)
    args.against = against.commit_of(args.against) if args.against else None
    return args


def narrowed(args: argparse.Namespace, part: str) -> bool:
    """Tell whether ``part`` was asked for otherwise than the device's whole part is measured.

    Rounds and steps to warm up make it more or less exact, and nothing else.
    """
    sizes, table2 = SIZES[args.device], part == TABLE2
    whole = {
        "methods": None,
        "tasks": None,
        "encoders": None,
        "layers": (sizes.table2_layers if table2 else sizes.layers) or 0,
        "width": 0,
        "batch": TABLE2_BATCH if table2 else sizes.batch,
        "tokens": sizes.tokens,
        "precision": PRECISION,
        "depths": DEPTHS,
        "ranks": RANKS,
    }
    return any(getattr(args, name) not in (None, own) for name, own in whole.items())


def _parser(about: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=parts, default=list(parts), help="parts to run")
    add("--against", metavar="REVISION", help="of git: time its steps too, and no other part")
    add("--device", choices=tuple(SIZES), help="default: cuda where there is one")
    add("--encoders", nargs="+", choices=tuple(SHAPES), help="of step; table2 takes the first")
    add("--methods", nargs="+", choices=tuple(METHODS), help="rows of step and table2")
    add("--tasks", nargs="+", choices=tuple(known_lengths()), help="of table2")
    add("--layers", type=_at_least_0, help="of the encoders in step and table2; 0: all")
    add("--width", type=_at_least_0, help="hidden size, a multiple of 64; 0: the published")
    add("--batch", type=_at_least_1, help=f"sequences (table2: {TABLE2_BATCH} unless given)")
    add("--tokens", type=_at_least_1, help="of each sequence in micro, step and scaling")
    add("--depths", nargs="+", type=_at_least_1, default=DEPTHS, help="layers in scaling")
    add("--ranks", nargs="+", type=_at_least_1, default=RANKS, help="k and r in scaling")
    add("--rounds", type=_at_least_1, help="steps of each method that count")
    add("--warm-up", type=_at_least_0, default=2, help="steps of each method that do not count")
    add("--precision", choices=("fp32", *AUTOCAST), default=PRECISION, help="of forward passes")
    add("--glue", type=Path, metavar="DIR", help="measure sentence lengths here; needs pyarrow")
    add("--tokenizer", default="microsoft/deberta-v3-base", help="for --glue: hub name or folder")
    add("--commit", help="of the code, where git cannot tell")
    add("--out", type=Path, metavar="DIR", help="default results/bench; a folder <device> in it")
    return parser


def _problem(args: argparse.Namespace) -> str | None:
    """Return what is wrong with values that each alone are allowed, or None."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: no GPU is visible; leave it out to use the processor"
    if args.glue is not None and not args.glue.is_dir():
        return f"--glue {args.glue}: no such folder; without it the known lengths do"
    if args.glue is not None and find_spec("pyarrow") is None:
        return "--glue needs pyarrow; without it the known lengths do"
    if args.against and against.commit_of(args.against) is None:
        return f"--against {args.against}: git knows no such revision with {against.NEEDED}"
    try:
        shaped(ENCODERS[0], width=args.width or None)
    except ValueError as error:
        return str(error)
    return None


def _at_least_1(text: str) -> int:
    return _at_least(1, text)


def _at_least_0(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number >= {least})")
    return int(text)
