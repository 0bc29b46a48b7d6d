"""Two results folders of the same sweep, compared but for time and place."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

# A commit made between two sweeps is not the sweep's doing.
OF_ITS_TIME = ["train_seconds", "seconds_per_step", "peak_memory_mb", "commit", "dirty"]
NAMES_ITS_PLACE = ("metrics.csv", "config.yaml", "runs.csv")


def differences(one: Path, other: Path) -> list[str]:
    """Return what differs: files that only one has, contents to the byte, rows of runs."""
    left, right = contents(one), contents(other)
    wrong = [f"only in {one.name}: {name}" for name in left.keys() - right.keys()]
    wrong += [f"only in {other.name}: {name}" for name in right.keys() - left.keys()]
    wrong += [name for name in left.keys() & right.keys() if left[name] != right[name]]
    rows = [untimed(folder / "runs.csv") for folder in (one, other)]
    if not rows[0].equals(rows[1]):
        wrong.append(f"runs.csv: {rows[0].compare(rows[1]) if same_shape(*rows) else 'its shape'}")
    return sorted(wrong)


def untimed(path: Path) -> pd.DataFrame:
    """Return the rows of a runs.csv or metrics.csv without what depends on time."""
    return pd.read_csv(path).drop(columns=OF_ITS_TIME, errors="ignore")


def same_shape(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return list(one.columns) == list(other.columns) and len(one) == len(other)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file (folders end in /) but logs; of those that name a place, "" for all."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name.split("/")[0] != "logs":
            readable = path.is_file() and path.name not in NAMES_ITS_PLACE
            found[name + "/" * path.is_dir()] = path.read_bytes() if readable else b""
    return found
