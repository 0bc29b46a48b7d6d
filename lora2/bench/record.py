"""Rows of measurements, where they come from, and the CSV files they are kept in."""

from __future__ import annotations

import csv
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from lora2.bench.counters import Counts
from lora2.bench.step import quartiles, ratio
from lora2.experiment.provenance import code_state, device_name

RESULTS = Path("results/bench")
PACKAGES = ("torch", "transformers", "peft")
Row = dict[str, object]


def provenance(device: str, commit: str | None = None) -> Row:
    """Return device, threads, versions and commit.

    ``device`` is ``cuda`` or ``cpu``; ``commit`` names the code where git cannot.
    """
    found, dirty = code_state()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "commit": commit or found,
        "dirty": dirty,
    }


def slug(device: str) -> str:
    """Return a device's name as a folder's: ``NVIDIA H100 80GB HBM3`` -> nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def times(
    seconds: Sequence[float],
    bases: Mapping[str, Sequence[float] | None],
    *,
    by_round: bool = True,
) -> Row:
    """Return the timing columns of a row: seconds (median and quartiles) and ratios.

    ``bases`` gives the seconds of the rows to compare with, by name, of the same rounds; a ratio
    is the median over the rounds, empty where its base was not measured. Not ``by_round``, for
    differences of times: the ratio of the two medians, empty unless both are above 0.
    """
    low, middle, high = quartiles(seconds)
    columns: Row = {"rounds": len(seconds), "seconds": middle, "seconds_q1": low}
    columns["seconds_q3"] = high
    for name, base in bases.items():
        told = base is not None and (by_round or min(middle, statistics.median(base)) > 0)
        of = ratio if by_round else _of_medians
        columns[f"ratio_to_{name}"] = of(seconds, base) if told else ""
    return columns


def _of_medians(seconds: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(seconds) / statistics.median(base)


def counted(counts: Counts) -> dict[str, int]:
    """Return the counting columns of a row."""
    return {"kernels": len(counts.kernels), "syncs": len(counts.syncs)}


def write(path: Path, rows: Sequence[Row], origin: Row) -> None:
    """Write ``rows``, each with ``origin``; the file is replaced at once or left as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0], *origin], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**_rounded(row), **origin} for row in rows)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _rounded(row: Row) -> Row:
    """Six digits: what no clock here can tell apart is not written."""
    return {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return some columns of ``rows`` as text for a terminal."""
    cells = [list(columns)] + [[_shown(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
