"""The granularity test: can a printed accuracy be one run on the validation set?

An accuracy over n examples is a multiple of 100/n. A printed value that no multiple gives,
rounded to its two decimals, is a mean over runs or was measured on other data
(Brown and Heathers' GRIM test, 2017, applied to accuracies).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import pandas as pd

from lora2.glue.tasks import TASKS
from lora2.paper import numbers as paper_tables

# Printed accuracies by column -> validation examples. Table 5 rounds most of these sizes.
VALIDATION_SIZES = {
    column: TASKS[task].rows[f"validation_{metric.removesuffix('_accuracy')}"]
    if task == "mnli"
    else TASKS[task].rows["validation"]
    for (task, metric), column in paper_tables.PAPER_COLUMNS.items()
    if metric.endswith("accuracy")
}
HALF = Fraction(1, 200)  # half of the last printed digit, 0.01


def correct_counts(printed: float, n: int, runs: int = 1) -> range:
    """How many of ``n * runs`` answers can have been right; empty if no number gives ``printed``.

    Exact arithmetic, and a tie may have been rounded either way.
    """
    value, unit = Fraction(str(printed)), Fraction(100, n * runs)
    return range(ceil((value - HALF) / unit), floor((value + HALF) / unit) + 1)


def by_truncation(printed: float, n: int) -> range:
    """The same if the printed value was cut off after two decimals instead of rounded."""
    value, unit = Fraction(str(printed)), Fraction(100, n)
    return range(ceil(value / unit), ceil((value + 2 * HALF) / unit))


def fewest_runs(printed: float, n: int, most: int = 100) -> int | None:
    """The smallest number of runs whose mean can be ``printed``; None above ``most``."""
    return next((s for s in range(1, most + 1) if correct_counts(printed, n, s)), None)


def chance_to_pass(n: int) -> float:
    """Share of the two-decimal percentages that one run over ``n`` examples can give."""
    return min(1.0, (n + 1) / 10_001)


@dataclass(frozen=True)
class Cell:
    """One printed accuracy, ``printed`` percent over ``n`` examples."""

    table: int
    row: str
    column: str
    printed: float
    n: int

    @property
    def one_run(self) -> bool:
        return bool(correct_counts(self.printed, self.n))


def row_name(record: pd.Series) -> str:
    """A short name of a row of Table 1, 3 or 4, e.g. "lora r=8", "uv+UV" or "q+k"."""
    if "method" not in record:
        return str(record.iloc[0])
    if pd.isna(record["rank"]):
        return str(record["method"])
    letter = "k" if record["method"] == "lora2" else "r"
    return f"{record['method']} {letter}={int(record['rank'])}"


def cells() -> list[Cell]:
    """Every accuracy printed in Tables 1, 3 and 4."""
    return [
        Cell(number, row_name(record), column, float(record[column]), n)
        for number in (1, 3, 4)
        for _, record in paper_tables.table(number).iterrows()
        for column, n in VALIDATION_SIZES.items()
        if column in record
    ]
