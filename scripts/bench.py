"""Measure the methods on this device: training steps, inference, the driver.

The methods take their steps in turn in one process, on random weights of the encoder's shape.
Writes results/bench/<device>/{step,driver}.csv. Sizes default to the paper's on a GPU, and to
smaller encoders on a CPU (to measure it on a machine with a GPU, set CUDA_VISIBLE_DEVICES=).

python scripts/bench.py --only step --rounds 20
python scripts/bench.py --targets    # results/bench/targets.md from the CSVs; measures nothing
"""

from __future__ import annotations

import argparse
import math
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
from lora2.bench.step import release
from lora2.config.parse import SHAPES
from lora2.markup import grid
from lora2.records.store import write_atomically
from lora2.run.device import AUTOCAST, device_name, provenance

RESULTS = Path("results/bench")
PARTS = ("step", "driver")
ENCODERS = ("deberta-v3-base", "roberta-large")
DRIVEN = "minilm"  # the encoder of the driver's row: small, so that overhead shows
WARM_UP = 2  # steps of each method that are not counted
# Layers (None: the published number), sequences of a batch, tokens of each, rounds.
SIZES = {"cuda": (None, 32, 128, 50), "cpu": (3, 4, 48, 15)}
VARIANTS = ("encoders", "methods", "layers", "batch", "tokens", "precision")
HIDDEN = ["label", "method", "r", "k", "seconds_q1", "seconds_q3", "precision"]  # on a terminal
JUDGED = "deberta-v3-base"  # the targets of a step are for this encoder
TARGETS = [  # text, part, row, column, at most on a CPU, at most on a GPU
    ("Step of LoRA² k=8: time vs LoRA r=8", "step", "lora2-k8", "ratio_to_lora", 1.05, 1.05),
    ("Step of LoRA² k=8: time vs AdaLoRA r=8", "step", "lora2-k8", "ratio_to_adalora", 0.93, 0.8),
    ("Memory of LoRA² k=8 vs LoRA r=8", "step", "lora2-k8", "memory_ratio_to_lora", 1.02, 1.02),
    ("Unmerged inference: time vs unmerged LoRA r=8", "step", "unmerged", "ratio_to_lora", 1, 1),
    ("Merged inference: additional kernels", "step", "merged", "more", 0, 0),
    ("Step of the driver: time vs a bare loop", "driver", "driver", "ratio_to_bare", 1.03, 1.03),
]
Parts = dict[str, pd.DataFrame]


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for; show each, and write it as soon as it is done."""
    # transformers warns of its own renamings once per model.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    args = parse(argv)
    if args.targets:
        return write_targets()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    origin: Row = {**provenance(), "device": device_name()}
    origin |= {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
    folder = (args.out or RESULTS) / slug(str(origin["device"]))
    variant = [f"--{name}" for name in VARIANTS if getattr(args, name) is not None]
    print(f"bench on {origin['device']}", flush=True)
    for part in args.only:
        started = time.perf_counter()
        rows = measure(part, args, device)
        release()
        shown = pd.DataFrame(rows).drop(columns=HIDDEN, errors="ignore")
        print(shown.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
        print(f"{part}: {len(rows)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        if variant and args.out is None:
            print(f"{part}: shown, not written, because of {' '.join(variant)} (to write it, add "
                  "--out DIR)")  # fmt: skip
        else:
            write(folder / f"{part}.csv", rows, origin)
            print(f"wrote {folder / part}.csv", flush=True)
    return 0


def measure(part: str, args: argparse.Namespace, device: str) -> list[Row]:
    layers, batch, tokens, rounds = SIZES[device]
    if part == "driver":  # a whole run's sizes, on any device
        layers, batch = None, 32
    layers, batch, tokens = args.layers or layers, args.batch or batch, args.tokens or tokens
    rounds, precision = args.rounds or rounds, args.precision or "fp32"

    def case(encoder: str) -> Case:
        return Case(encoder, layers, batch, tokens, precision, device)

    if part == "driver":
        return cases.driver(case(DRIVEN), rounds, WARM_UP)
    rows: list[Row] = []
    for encoder in args.encoders or ENCODERS:
        print(f"  {encoder}", flush=True)
        rows += cases.training(case(encoder), args.methods or list(METHODS), rounds, WARM_UP)
        rows += cases.inference(case(encoder), rounds, WARM_UP)
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


def read(folder: Path) -> Parts:
    return {p: pd.read_csv(folder / f"{p}.csv") for p in PARTS if (folder / f"{p}.csv").is_file()}


def targets(benches: Sequence[Parts]) -> str:
    """Return a page with a row for each target and a column for each device."""
    by_device = {str(next(iter(b.values()))["device"].iloc[0]): b for b in benches}
    devices = sorted(by_device)
    lines = [["Target", "At most", *devices]]
    for text, part, row, column, cpu, gpu in TARGETS:
        line = [text, f"{cpu:g}" if cpu == gpu else f"{cpu:g} (GPU {gpu:g})"]
        for device in devices:
            value = reached(by_device[device], part, row, column)
            shown = f"{value:.3f}" if "ratio" in column else f"{value:.0f}"
            missed = " (missed)" * (value > (cpu if device.startswith("cpu") else gpu))
            line.append("not measured" if math.isnan(value) else shown + missed)
        lines.append(line)
    about = f"Steps and inference of {JUDGED}. Generated by `make bench` from results/bench."
    if all(device.startswith("cpu") for device in devices):
        about += " **Not measured on a GPU: none was available.**"
    return "\n".join(["# Targets and measurements", "", about, "", *grid(lines), ""])


def reached(parts: Parts, part: str, row: str, column: str) -> float:
    """Return the largest value of the rows that a target names; NaN if there are none."""
    if part not in parts:
        return math.nan
    frame = parts[part]
    if part == "step":
        frame = frame.loc[frame["encoder"] == JUDGED]
        plain = frame.loc[frame["row"] == "base", "kernels"].max()
        frame = frame.assign(more=frame["kernels"] - plain)
    return float(frame.loc[frame["row"] == row, column].max())


def write_targets() -> int:
    """Write the page of all devices under results/bench; return the exit code."""
    folders = sorted({path.parent for path in RESULTS.glob("*/*.csv") if path.stem in PARTS})
    if not folders:
        print(f"no bench in {RESULTS}: run `make bench` first", file=sys.stderr)
        return 2
    write_atomically(RESULTS / "targets.md", targets([read(folder) for folder in folders]))
    print(f"wrote {RESULTS / 'targets.md'}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
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
    add("--targets", action="store_true", help="write results/bench/targets.md, measure nothing")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} (allowed: a whole number >= 1)")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
