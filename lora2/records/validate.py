"""What is not believed of a results folder: it may come from anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

# A run's name is a folder's name: one that leads elsewhere is none.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
NUMBERS = re.compile(r"(best|last)_.*|score_(best|last)|step_best|evaluations|steps|seed|params_.*|"
                     r"seconds_per_step|train_seconds|batch_size")  # fmt: skip


def bad_names(frame: pd.DataFrame) -> list[str]:
    """Return the run names of a table of runs that cannot be a folder's under ``runs``."""
    return [name for name in frame["run"].fillna("").astype(str) if not RUN_NAME.fullmatch(name)]


def bad_numbers(frame: pd.DataFrame) -> list[str]:
    """Return the columns that should hold finite numbers, or nothing, and hold something else."""
    bad = []
    for column in frame.columns:
        if NUMBERS.fullmatch(column) and len(frame):
            given = frame[column].notna()
            numbers = pd.to_numeric(frame[column].where(given), errors="coerce")
            if not numbers[given].between(-1e300, 1e300).all():
                bad.append(column)
    return bad


def leads_outside(folder: Path) -> str | None:
    """Return the name of a link in a run's folder, or of the folder itself; None where none is."""
    if folder.is_symlink():
        return folder.name
    return next((path.name for path in sorted(folder.rglob("*")) if path.is_symlink()), None)
