"""Measure the methods on this device: operations, training steps, inference, the driver.

The methods take their steps in turn in one process, on random weights of the encoder's shape.
Writes results/bench/<device>/{micro,step,driver}.csv. Sizes default to the paper's on a GPU, and to
smaller encoders on a CPU (to measure it on a machine with a GPU, set CUDA_VISIBLE_DEVICES=).

python scripts/bench.py --only step --rounds 20
python -m lora2.bench.report    # results/bench/targets.md from the CSVs
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from lora2.bench import cases
from lora2.bench.cases import METHODS, Case, Row
from lora2.bench.report import PARTS, RESULTS
from lora2.bench.step import release
from lora2.records.store import write_atomically
from lora2.run.device import AUTOCAST, device_name, provenance
from lora2.run.model import SHAPES

ENCODERS = ("deberta-v3-base", "roberta-large")
DRIVEN = "minilm"  # the encoder of the driver's row: small, so that overhead shows
DEPTHS = (12, 24)  # layers of six matrices: DeBERTaV3-base's, and twice as many
WARM_UP = 2  # steps of each method that are not counted
# Layers (None: the published number), sequences of a batch, tokens of each, rounds.
SIZES = {"cuda": (None, 32, 128, 50), "cpu": (3, 4, 48, 15)}
VARIANTS = ("encoders", "methods", "layers", "batch", "tokens", "precision")
HIDDEN = ["label", "method", "r", "k", "seconds_q1", "seconds_q3", "precision"]  # on a terminal


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for; show each, and write it as soon as it is done."""
    # transformers warns of its own renamings once per model.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    args = parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    origin: Row = {**provenance(), "device": device_name(device)}
    origin |= {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    folder = (args.out or RESULTS) / slug(str(origin["device"]))
    variant = [name for name in VARIANTS if getattr(args, name) is not None]
    print(f"bench on {origin['device']}", flush=True)
    for part in args.only:
        started = time.perf_counter()
        rows = measure(part, args, device)
        release()
        shown = pd.DataFrame(rows).drop(columns=HIDDEN, errors="ignore")
        print(shown.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
        print(f"{part}: {len(rows)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        if variant and args.out is None:
            typed = " ".join(f"--{name}" for name in variant)
            print(f"{part}: shown, not written, because of {typed} (to write it, add --out DIR)")
        else:
            write(folder / f"{part}.csv", rows, origin)
            print(f"wrote {folder / part}.csv", flush=True)
    return 0


def measure(part: str, args: argparse.Namespace, device: str) -> list[Row]:
    """Return the rows of one part."""
    layers, batch, tokens, rounds = SIZES[device]
    if part == "driver":  # a whole run's sizes, on any device
        layers, batch = None, 32
    layers, batch, tokens = args.layers or layers, args.batch or batch, args.tokens or tokens
    rounds, precision = args.rounds or rounds, args.precision or "fp32"

    def case(encoder: str) -> Case:
        return Case(encoder, layers, None, batch, tokens, precision, device)

    if part == "micro":
        return [row for depth in DEPTHS for row in cases.part_counts(depth)]
    if part == "driver":
        return cases.driver(case(DRIVEN), rounds, WARM_UP)
    rows: list[Row] = []
    for encoder in args.encoders or ENCODERS:
        print(f"  {encoder}", flush=True)
        rows += cases.steps(case(encoder), args.methods or list(METHODS), rounds, WARM_UP)
    return rows


def write(path: Path, rows: Sequence[Row], origin: Row) -> None:
    """Write ``rows`` to six digits, each with ``origin``."""
    rounded = [
        {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in row.items()}
        for row in ({**row, **origin} for row in rows)
    ]
    frame = pd.DataFrame(rounded, dtype=object)  # integers stay integers beside empty cells
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))


def slug(device: str) -> str:
    """Return a device's name as a folder's: ``NVIDIA H100 80GB HBM3`` -> nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises:
        SystemExit: an unknown option or value; the message says what is allowed.
    """
    parser = argparse.ArgumentParser(
        prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    add("--encoders", nargs="+", choices=tuple(SHAPES), help="of step")
    add("--methods", nargs="+", choices=tuple(METHODS), help="rows of step")
    add("--layers", type=_count, help="of the encoders")
    add("--batch", type=_count, help="sequences")
    add("--tokens", type=_count, help="of each sequence")
    add("--rounds", type=_count, help="measured steps of each method")
    add("--precision", choices=("fp32", *AUTOCAST), help="of forward passes, default fp32")
    add("--out", type=Path, metavar="DIR", help="write DIR/DEVICE/*.csv, default results/bench")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number >= 1)")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
