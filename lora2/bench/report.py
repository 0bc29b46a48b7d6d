"""A page of each device's bench and one of the targets, from the CSVs that ``make bench`` wrote.

python -m lora2.bench.report [results/bench/DEVICE ...]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora2.bench.cli import RESULTS
from lora2.markup import markdown
from lora2.records.store import write_atomically

PARTS = {
    "micro": "Operations of the parts by themselves",
    "step": "One training step, and inference",
    "driver": "The driver's training step beside a bare loop's",
}
COLUMNS = {  # of a CSV -> (heading, format)
    "part": ("Part", ""), "matrices": ("Matrices", "d"), "encoder": ("Encoder", ""),
    "label": ("Method", ""), "layers": ("Layers", "d"), "width": ("Width", "d"),
    "precision": ("Precision", ""), "batch": ("Batch", "d"), "tokens": ("Tokens", ".0f"),
    "milliseconds": ("ms", ".2f"), "ratio_to_lora": ("to LoRA", ".3f"),
    "ratio_to_adalora": ("to AdaLoRA", ".3f"), "ratio_to_base": ("to no adapter", ".3f"),
    "ratio_to_bare": ("to the bare loop", ".3f"), "kernels": ("Kernels", "d"),
    "syncs": ("Syncs", "d"), "memory_mib": ("Memory, MiB", ",.0f"),
    "memory_ratio_to_lora": ("Memory to LoRA", ".3f"),
}  # fmt: skip
JUDGED = "deberta-v3-base"  # the targets of a step are stated at its width
ABOUT = (
    "Medians of steps taken in turn in one process, on random weights of the encoder's shape; "
    "ratios are the median over rounds of two times of the same round. Made by `make bench`; what "
    "the columns mean and how they are measured: docs/bench.md."
)
TARGETS = [  # text, part, row, column, at most on a processor, at most on a GPU, format
    ("Step of LoRA² k=8, time to LoRA r=8", "step", "lora2-k8", "ratio_to_lora", 1.05, 1.05, ".3f"),
    ("The same, time to AdaLoRA r=8", "step", "lora2-k8", "ratio_to_adalora", 0.93, 0.8, ".3f"),
    ("The same, memory to LoRA r=8", "step", "lora2-k8", "memory_ratio_to_lora", 1.02, 1.02, ".3f"),
    ("Unmerged inference, time to no adapter", "step", "unmerged", "ratio_to_base", 1.03, 1.03,
     ".3f"),
    ("Merged inference, kernels more than without an adapter", "step", "merged", "more_kernels",
     0, 0, "d"),
    ("Kernels of the regulariser", "micro", ("regulariser", "lora2-k8"), "kernels", 150, 150, "d"),
    ("Its synchronisations", "micro", ("regulariser", "lora2-k8"), "syncs", 0, 0, "d"),
    ("Kernels of the allocator", "micro", ("allocator", "lora2-k8"), "kernels", 20, 20, "d"),
    ("Its synchronisations", "micro", ("allocator", "lora2-k8"), "syncs", 0, 0, "d"),
    ("The driver's step, time to a bare loop", "driver", "driver", "ratio_to_bare", 1.03, 1.03,
     ".3f"),
]  # fmt: skip
Parts = Mapping[str, pd.DataFrame]


def read(folder: Path) -> Parts:
    """Return the parts that ``folder`` holds, by name.

    Raises:
        FileNotFoundError: it holds none.
        ValueError: a file was not written by the bench.
    """
    parts = {}
    for part in PARTS:
        path = folder / f"{part}.csv"
        if not path.is_file():
            continue
        parts[part] = pd.read_csv(path)
        needed = {"row", "kernels" if part == "micro" else "seconds", "device", "commit"}
        if missing := needed - set(parts[part].columns):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: run `make bench`")
    if not parts:
        raise FileNotFoundError(f"no bench in {folder}: run `make bench` first")
    return parts


def render(parts: Parts) -> str:
    """Return the page: where it was measured, and a table of each part."""
    lines = [f"# Bench on {markdown(_device(parts))}", "", ABOUT, ""]
    for part, frame in parts.items():
        first = frame.iloc[0]
        changed = " with changes" if first["dirty"] else ""
        versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "transformers", "peft"))
        origin = f"{first['threads']} threads, {versions}, commit {first['commit']}{changed}."
        lines += [f"## {PARTS[part]}", "", markdown(origin), "", *_grid(frame), ""]
    return "\n".join(lines)


def _grid(frame: pd.DataFrame) -> list[str]:
    """Return the columns that are not all empty, as a Markdown table."""
    if "seconds" in frame and not _is_cpu(frame["device"].iloc[0]):
        frame = frame.assign(milliseconds=1000 * frame["seconds"])  # a processor's tell nothing
    shown = [name for name in COLUMNS if name in frame and frame[name].notna().any()]
    rows = [[_cell(row[name], COLUMNS[name][1]) for name in shown] for _, row in frame.iterrows()]
    return _table([[COLUMNS[name][0] for name in shown], *rows])


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return [head, "|" + "---|" * len(lines[0]), *rows]


def _cell(value: Any, form: str) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if not form:
        return markdown(value)
    return format(int(value) if form == "d" else value, form)


def targets(benches: Sequence[Parts]) -> str:
    """Return a page with a row for each target and a column for each device."""
    benches = sorted(benches, key=_device)
    lines = [["Target", "At most", *(markdown(_device(parts)) for parts in benches)]]
    for text, part, row, column, cpu, gpu, form in TARGETS:
        limit = format(cpu, "g") if cpu == gpu else f"{cpu:g} (GPU {gpu:g})"
        lines.append([text, limit])
        for parts in benches:
            value = reached(parts, part, row, column)
            missed = value > (cpu if _is_cpu(_device(parts)) else gpu)
            shown = _cell(value, form) or "not measured"
            lines[-1].append(f"{shown} (missed)" if missed else shown)
    about = f"Steps and inference of {JUDGED}. Made by `make bench` from the CSVs beside it."
    if all(_is_cpu(_device(parts)) for parts in benches):
        about += " **Not measured on a GPU: none was at hand.**"
    return "\n".join(["# What should be reached, and what was", "", about, "", *_table(lines), ""])


def reached(parts: Parts, part: str, row: str | tuple[str, str], column: str) -> float:
    """Return what a bench reached, of several rows the most; NaN where it has none."""
    if part not in parts:
        return math.nan
    frame = parts[part]
    if part == "step":
        frame = frame.loc[frame["encoder"] == JUDGED]
        plain = frame.loc[frame["row"] == "base", "kernels"].max()
        frame = frame.assign(more_kernels=frame["kernels"] - plain)
    if isinstance(row, tuple):
        frame, row = frame.loc[frame["part"] == row[0]], row[1]
    return float(frame.loc[frame["row"] == row, column].max())


def _device(parts: Parts) -> str:
    return str(next(iter(parts.values()))["device"].iloc[0])


def _is_cpu(device: str) -> bool:
    return device.startswith("cpu")


def measured(results: Path = RESULTS) -> list[Path]:
    """Return the folders of all devices' benches."""
    return sorted({path.parent for path in results.glob("*/*.csv") if path.stem in PARTS})


def main(argv: Sequence[str]) -> int:
    """Write the pages of these folders, or of all under results/bench; return the exit code."""
    try:
        pages = {Path(folder) / "bench.md": read(Path(folder)) for folder in argv or measured()}
        if not pages:
            raise FileNotFoundError(f"no bench in {RESULTS}: run `make bench` first")
        texts = {path: render(parts) for path, parts in pages.items()}
        if not argv:
            texts[RESULTS / "targets.md"] = targets(list(pages.values()))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in texts.items():
        write_atomically(path, text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
