"""Write results/bench/targets.md, what should be reached and what was, from the bench's CSVs.

python -m lora2.bench.report
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd

from lora2.markup import grid
from lora2.records.store import write_atomically

RESULTS = Path("results/bench")
PARTS = ("micro", "step", "driver")
JUDGED = "deberta-v3-base"  # the targets of a step are stated at its width
TARGETS = [  # text, part, row, column, at most on a processor, at most on a GPU
    ("Step of LoRA² k=8, time to LoRA r=8", "step", "lora2-k8", "ratio_to_lora", 1.05, 1.05),
    ("The same, time to AdaLoRA r=8", "step", "lora2-k8", "ratio_to_adalora", 0.93, 0.8),
    ("The same, memory to LoRA r=8", "step", "lora2-k8", "memory_ratio_to_lora", 1.02, 1.02),
    ("Unmerged inference, time to LoRA r=8 unmerged", "step", "unmerged", "ratio_to_lora", 1, 1),
    ("Merged inference, kernels more than without an adapter", "step", "merged", "more", 0, 0),
    ("Kernels of the regulariser", "micro", ("regulariser", "lora2-k8"), "kernels", 150, 150),
    ("Its synchronisations", "micro", ("regulariser", "lora2-k8"), "syncs", 0, 0),
    ("Kernels of the allocator", "micro", ("allocator", "lora2-k8"), "kernels", 20, 20),
    ("Its synchronisations", "micro", ("allocator", "lora2-k8"), "syncs", 0, 0),
    ("The driver's step, time to a bare loop", "driver", "driver", "ratio_to_bare", 1.03, 1.03),
]
Parts = dict[str, pd.DataFrame]


def read(folder: Path) -> Parts:
    """Read the parts that ``folder`` holds, by name.

    Raises:
        ValueError: a file was not written by the bench.
    """
    parts = {p: pd.read_csv(folder / f"{p}.csv") for p in PARTS if (folder / f"{p}.csv").is_file()}
    for part, frame in parts.items():
        needed = {"row", "kernels" if part == "micro" else "seconds", "device", "commit"}
        if missing := needed - set(frame.columns):
            path = folder / f"{part}.csv"
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: run `make bench`")
    return parts


def targets(benches: list[Parts]) -> str:
    """Return a page with a row for each target and a column for each device."""
    benches = sorted(benches, key=_device)
    devices = [_device(parts) for parts in benches]
    lines = [["Target", "At most", *devices]]
    for text, part, row, column, cpu, gpu in TARGETS:
        line = [text, f"{cpu:g}" if cpu == gpu else f"{cpu:g} (GPU {gpu:g})"]
        for parts, device in zip(benches, devices, strict=True):
            value = reached(parts, part, row, column)
            missed = value > (cpu if device.startswith("cpu") else gpu)
            shown = f"{value:.3f}" if "ratio" in column else f"{value:.0f}"
            shown = "not measured" if math.isnan(value) else shown
            line.append(f"{shown} (missed)" if missed else shown)
        lines.append(line)
    about = f"Steps and inference of {JUDGED}. Made by `make bench` from the CSVs beside it."
    if all(device.startswith("cpu") for device in devices):
        about += " **Not measured on a GPU: none was available.**"
    return "\n".join(["# What should be reached, and what was", "", about, "", *grid(lines), ""])


def reached(parts: Parts, part: str, row: str | tuple[str, str], column: str) -> float:
    """Return the largest value of the rows that a target names; NaN if there are none."""
    if part not in parts:
        return math.nan
    frame = parts[part]
    if part == "step":
        frame = frame.loc[frame["encoder"] == JUDGED]
        plain = frame.loc[frame["row"] == "base", "kernels"].max()
        frame = frame.assign(more=frame["kernels"] - plain)
    if isinstance(row, tuple):
        frame, row = frame.loc[frame["part"] == row[0]], row[1]
    return float(frame.loc[frame["row"] == row, column].max())


def _device(parts: Parts) -> str:
    return str(next(iter(parts.values()))["device"].iloc[0])


def main() -> int:
    """Write the page of all devices under results/bench; return the exit code."""
    folders = sorted({path.parent for path in RESULTS.glob("*/*.csv") if path.stem in PARTS})
    try:
        if not folders:
            raise ValueError(f"no bench in {RESULTS}: run `make bench` first")
        text = targets([read(folder) for folder in folders])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    write_atomically(RESULTS / "targets.md", text)
    print(f"wrote {RESULTS / 'targets.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
