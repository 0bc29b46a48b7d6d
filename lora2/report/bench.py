"""A page and plots of each device's bench, from the CSVs that ``make bench`` wrote.

python -m lora2.report.bench [results/bench/DEVICE ...]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lora2.bench.record import RESULTS
from lora2.report import bench_figures, bench_targets
from lora2.report.escape import markdown
from lora2.report.store import write_atomically

PARTS = {
    "micro": "Parts by themselves",
    "step": "One training step, and inference",
    "table2": "Table 2: steps on batches as long as GLUE's sentences",
    "scaling": "Scaling over layers, k and r",
    "profile": "A training step in its parts and dearest operations",
    "against": "A training step of this code and of an earlier revision's",
}
NAMES = {
    "part": "Part",
    "code": "Code",
    "matrices": "Matrices",
    "encoder": "Encoder",
    "task": "Task",
    "axis": "Axis",
    "value": "Value",
    "what": "What",
    "label": "Method",
    "kind": "Kind",
    "name": "Name",
    "calls": "Calls",
    "share": "Share of step",
    "layers": "Layers",
    "width": "Width",
    "precision": "Precision",
    "batch": "Batch",
    "tokens": "Tokens",
    "milliseconds": "ms",
    "ratio_to_lora": "to LoRA",
    "ratio_to_adalora": "to AdaLoRA",
    "ratio_to_base": "to no adapter",
    "ratio_to_then": "to then",
    "kernels": "Kernels",
    "syncs": "Syncs",
    "memory_mib": "Memory, MiB",
    "memory_ratio_to_lora": "Memory to LoRA",
}
FORMS: Mapping[str, str] = {
    "milliseconds": ".2f",
    "ratio_to_lora": ".3f",
    "ratio_to_adalora": ".3f",
    "ratio_to_base": ".3f",
    "ratio_to_then": ".3f",
    "memory_mib": ",.0f",
    "memory_ratio_to_lora": ".3f",
    "tokens": ".0f",
    "share": ".1%",
}


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the parts that ``folder`` holds, by name.

    Raises:
        FileNotFoundError: it holds none.
        ValueError: a file was not written by the bench.
    """
    found = {}
    for part in PARTS:
        path = folder / f"{part}.csv"
        if not path.is_file():
            continue
        frame = pd.read_csv(path)
        if missing := {"seconds", "device", "commit"} - set(frame.columns):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: run `make bench` again")
        if part == "micro" and "precision" not in frame:  # files without it hold no other
            frame["precision"] = "fp32"
        found[part] = frame.assign(milliseconds=1000 * frame["seconds"])
    if not found:
        raise FileNotFoundError(f"no bench in {folder}: run `make bench` first")
    return found


def render(parts: Mapping[str, pd.DataFrame]) -> str:
    """Return the page: where it was measured, and a table of each part."""
    first = next(iter(parts.values())).iloc[0]
    lines = [f"# Bench on {markdown(first['device'])}", "", *_about(), ""]
    for part, frame in parts.items():
        lines += [f"## {PARTS[part]}", "", _origin(frame), ""]
        lines += [*_grid(frame), "", f"![{PARTS[part]}]({part}.png)", ""]
    return "\n".join(lines)


def _about() -> list[str]:
    return [
        "Medians of steps that the methods took in turn in one process, on random weights of the "
        "encoder's shape; ratios are the median over rounds of two times of the same round. "
        "Kernels: ATen operations that are no views. Syncs: places where the host waits for values "
        "of the device. Memory: weights, optimiser state and the most made in one step, of this "
        "method alone. Made by `make bench`; what the columns mean and how they are measured: "
        "docs/bench.md."
    ]


def _origin(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    changed = " with changes" if bool(first["dirty"]) else ""
    commit = str(first["commit"]) if isinstance(first["commit"], str) else "unknown"
    rounds = " to ".join(dict.fromkeys(str(of(frame["rounds"])) for of in (min, max)))
    return (
        f"{first['threads']} threads, torch {markdown(first['torch'])}, transformers "
        f"{markdown(first['transformers'])}, PEFT {markdown(first['peft'])}, commit "
        f"{markdown(commit)}{changed}, {rounds} rounds."
    )


def _grid(frame: pd.DataFrame) -> list[str]:
    """The columns that are there and not all empty, as a Markdown table."""
    shown = [name for name in NAMES if name in frame.columns and frame[name].notna().any()]
    # On a processor the times of one machine tell a reader nothing; ratios travel.
    if str(frame["device"].iloc[0]).startswith("cpu"):
        shown.remove("milliseconds")
    lines = [[NAMES[name] for name in shown]]
    for _, row in frame.iterrows():
        lines.append([_cell(name, row[name]) for name in shown])
    rule = "|" + "---|" * len(shown)
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return [texts[0], rule, *texts[1:]]


def _cell(name: str, value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if name in FORMS:
        return format(float(value), FORMS[name])  # type: ignore[arg-type]
    return markdown(int(value) if isinstance(value, float) else value)


def write(folder: Path) -> list[Path]:
    """Write bench.md and a PNG of each part into ``folder``; return their paths."""
    parts = read(folder)
    page = folder / "bench.md"
    write_atomically(page, render(parts))
    draw: Mapping[str, Callable[[pd.DataFrame], object]] = bench_figures.FIGURES
    return [page, *(bench_figures.save(draw[part](frame), folder / f"{part}.png")
                    for part, frame in parts.items())]  # fmt: skip


def measured(results: Path = RESULTS) -> list[Path]:
    """Return the folders of all devices' benches."""
    return sorted({path.parent for path in results.glob("*/*.csv") if path.stem in PARTS})


def write_targets(results: Path = RESULTS) -> Path:
    """Write what should be reached beside what all benches in ``results`` reached."""
    path = results / "targets.md"
    write_atomically(path, bench_targets.render([read(one) for one in measured(results)]))
    return path


def main(argv: Sequence[str]) -> int:
    """Write the pages of these folders, or of all under results/bench; return the exit code."""
    folders = [Path(one) for one in argv] or measured()
    try:
        for folder in folders or [RESULTS]:
            print("\n".join(f"wrote {path}" for path in write(folder)))
        if not argv:
            print(f"wrote {write_targets()}")
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
