"""Time the methods on this device: operations of their parts, training steps, and the driver.

Every method steps in turn with the others in one process, on random weights of the encoder's
shape. Writes results/bench/<device>/{micro,step,driver}.csv. Sizes default to the paper's on a GPU,
and to smaller encoders on a processor.

python scripts/bench.py --only step --rounds 20
python -m lora2.bench.report results/bench/<device>    # a page of the CSVs
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from lora2.bench import cases
from lora2.bench.cases import METHODS, Case, Row
from lora2.bench.step import release
from lora2.records.store import write_atomically
from lora2.run.device import AUTOCAST
from lora2.run.encoder_sizes import SHAPES, shaped
from lora2.run.provenance import device_name, provenance

RESULTS = Path("results/bench")
PARTS = ("micro", "step", "driver")
ENCODERS = ("deberta-v3-base", "roberta-large")
DRIVEN = "minilm"  # the encoder of the driver's row: small, so that overhead is seen
DEPTHS = (12, 24)  # layers of six matrices: DeBERTaV3-base's, and twice as many
PRECISION = "fp32"
HIDDEN = ["label", "method", "r", "k", "seconds_q1", "seconds_q3", "precision"]  # on a terminal


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A device's defaults; None stands for the published size."""

    layers: int | None
    batch: int  # sequences
    tokens: int  # of each
    rounds: int


SIZES = {"cuda": Sizes(None, 32, 128, 50), "cpu": Sizes(3, 4, 48, 15)}
DRIVER_SIZES = {kind: Sizes(None, 32, own.tokens, own.rounds) for kind, own in SIZES.items()}


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for; show each, and write it as soon as it is done."""
    args = parse(argv)
    origin: Row = {**provenance(), "device": device_name(args.device)}
    origin["threads"] = torch.get_num_threads()
    origin["commit"] = args.commit or origin["commit"]
    folder = (args.out or RESULTS) / slug(str(origin["device"]))
    print(f"bench on {origin['device']}, {args.precision}", flush=True)
    for part in args.only:
        started = time.perf_counter()
        rows = measure(part, args)
        release()
        shown = pd.DataFrame(rows).drop(columns=HIDDEN, errors="ignore")
        print(shown.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
        print(f"{part}: {len(rows)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        if narrowed(args, part) and args.out is None:
            print(f"a part or a variant of {part}: shown, not written (--out DIR writes it there)")
        else:
            write(folder / f"{part}.csv", rows, origin)
            print(f"wrote {folder / part}.csv", flush=True)
    return 0


def measure(part: str, args: argparse.Namespace) -> list[Row]:
    """Return the rows of one part."""
    sizes = _sizes(part, args.device)
    rounds, layers = args.rounds or sizes.rounds, sizes.layers
    layers = layers if args.layers is None else args.layers or None
    batch, tokens = args.batch or sizes.batch, args.tokens or sizes.tokens

    def case(encoder: str) -> Case:
        width = args.width or None
        return Case(encoder, layers, width, batch, tokens, args.precision, args.device)

    if part == "micro":
        return [row for depth in DEPTHS for row in cases.part_counts(depth)]
    if part == "driver":
        return cases.driver(case(DRIVEN), rounds, args.warm_up)
    rows: list[Row] = []
    for encoder in args.encoders or ENCODERS:
        print(f"  {encoder}", flush=True)
        rows += cases.steps(case(encoder), args.methods or list(METHODS), rounds, args.warm_up)
    return rows


def _sizes(part: str, device: str) -> Sizes:
    """Return the defaults of a part: the driver's are a whole run's, on any device."""
    return (DRIVER_SIZES if part == "driver" else SIZES)[device]


def write(path: Path, rows: Sequence[Row], origin: Row) -> None:
    """Write ``rows`` to six digits, each with ``origin``."""
    lines = [{**row, **origin} for row in rows]
    rounded = [
        {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in line.items()}
        for line in lines
    ]
    frame = pd.DataFrame(rounded, dtype=object)  # whole numbers stay whole beside empty cells
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))


def slug(device: str) -> str:
    """Return a device's name as a folder's: ``NVIDIA H100 80GB HBM3`` -> nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def narrowed(args: argparse.Namespace, part: str) -> bool:
    """Tell whether ``part`` was asked for otherwise than the device's whole part is measured.

    Rounds and steps to warm up make it more or less exact, and nothing else.
    """
    if part == "micro":
        return False  # counts, which no option changes
    sizes = _sizes(part, args.device)
    whole = {
        "methods": None,
        "encoders": None,
        "layers": sizes.layers or 0,
        "width": 0,
        "batch": sizes.batch,
        "tokens": sizes.tokens,
        "precision": PRECISION,
    }
    return any(getattr(args, name) not in (None, own) for name, own in whole.items())


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises:
        SystemExit: an unknown option or value, or --device cuda without one; the message says so.
    """
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    add("--device", choices=tuple(SIZES), help="default: cuda where there is one")
    add("--encoders", nargs="+", choices=tuple(SHAPES), help="of step")
    add("--methods", nargs="+", choices=tuple(METHODS), help="rows of step")
    add("--layers", type=_at_least(0), help="of the encoders; 0: all")
    add("--width", type=_at_least(0), help="hidden size, a multiple of 64; 0: the published")
    add("--batch", type=_at_least(1), help="sequences")
    add("--tokens", type=_at_least(1), help="of each sequence")
    add("--rounds", type=_at_least(1), help="steps of each method that count")
    add("--warm-up", type=_at_least(0), default=2, help="steps of each method that do not count")
    add("--precision", choices=(PRECISION, *AUTOCAST), default=PRECISION, help="of forward passes")
    add("--commit", help="of the code, where git cannot tell")
    add("--out", type=Path, metavar="DIR", help="default results/bench; a folder <device> in it")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible; leave it out to use the processor")
    if args.device == "cpu" and torch.cuda.is_available() and "driver" in args.only:
        print("driver: left out, the Trainer takes a GPU wherever there is one")
        args.only = [part for part in args.only if part != "driver"]
    try:
        shaped(ENCODERS[0], width=args.width or None)
    except ValueError as error:
        parser.error(str(error))
    return args


def _at_least(least: int) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number >= {least})")
        return int(text)

    return parsed
