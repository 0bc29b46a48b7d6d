"""Read the numbers printed in the paper (arXiv 2408.06854v1), and average GLUE by its rule.

Cells are the printed text. pandas is not imported: the command line reads this at start-up.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import resources
from statistics import mean
from typing import Any, TypeVar

from lora2.glue.tasks import TASKS

# The metrics the paper prints for each task, in the order of its Table 1.
TASK_METRICS = {name: task.score_metrics for name, task in TASKS.items()}
_SHORT = {"matthews_correlation": "mcc", "accuracy": "acc", "f1": "f1", "pearson": "pearson",
          "matched_accuracy": "m_acc", "mismatched_accuracy": "mm_acc"}  # fmt: skip
# The CSV column that holds each of them: cola_mcc, sst2_acc, ...
PAPER_COLUMNS = {(task, metric): f"{task}_{_SHORT[metric]}"
                 for task, metrics in TASK_METRICS.items() for metric in metrics}  # fmt: skip
AVERAGE = "average"
Line = dict[str, str]  # column -> printed text
Number = TypeVar("Number", float, Decimal)


@cache
def _read(name: str) -> tuple[Line, ...]:
    text = (resources.files("lora2.paper") / name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def table(number: int | str) -> tuple[Line, ...]:
    """Return Table 1 to 5 as printed; scores in percent, Table 2 in seconds per step."""
    if number not in range(1, 6):
        raise LookupError(f"the paper has no Table {number}: choose 1, 2, 3, 4 or 5")
    return _read(f"table{number}.csv")


def hyperparameters() -> tuple[Line, ...]:
    """Return the settings of the public LoRA2 and AdaLoRA scripts, one line per script."""
    return _read("hyperparameters.csv")


@cache
def texts() -> dict[str, Line]:
    """Return what the paper states, and how that is checked, by id of the finding."""
    return {line["id"]: line for line in _read("findings.csv")}


def glue_average(values: Mapping[tuple[str, str], Number], tasks: Sequence[str]) -> Number:
    """Return the mean over ``tasks``, each first averaged over its own metrics in ``values``.

    This is the rule of the paper's Avg column; a KeyError if a task has no value.
    """
    means = []
    for task in tasks:
        scores = [value for (name, _), value in values.items() if name == task]
        if not scores:
            raise KeyError(f"no value for task {task!r}: the average needs every task")
        means.append(mean(scores))
    return mean(means)


def printed_values(number: int | str, row: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Return what the paper prints for one row: (task, metric) -> number, and (AVERAGE, AVERAGE).

    ``row`` selects it by column values of the table's CSV, e.g. ``{"method": "lora2", "rank": 8}``;
    Table 2 has its methods in columns: ``{"column": "lora2_s_per_it"}``. A LookupError if there is
    no such table, or not exactly one row is selected.
    """
    if number == 2:
        columns, name = list(table(2)[0])[1:], row.get("column")
        if name not in columns:
            raise LookupError(f"Table 2 has no column {name!r}: choose {' or '.join(columns)}")
        return {(line["task"], "seconds_per_step"): float(line[name]) for line in table(2)}
    line = printed_row(number, row)
    values = {key: float(line[column]) for key, column in PAPER_COLUMNS.items() if column in line}
    return values | {(AVERAGE, AVERAGE): float(line["avg_printed"])}


def printed_size(number: int | str, row: Mapping[str, Any]) -> str:
    """Return the parameter count that the paper prints for a row, as text; "" if none."""
    line = printed_row(number, row)
    return line.get("params") or line.get("params_printed") or ""


def printed_row(number: int | str, row: Mapping[str, Any]) -> Line:
    """Return the line of a table that ``row`` (column -> value) selects; else a LookupError."""
    lines = table(number)
    if not row or not set(row) <= set(lines[0]):
        raise LookupError(f"a row of Table {number} is selected by {', '.join(lines[0])}")
    chosen = [line for line in lines if all(_same(line[name], row[name]) for name in row)]
    if len(chosen) != 1:
        raise LookupError(f"{dict(row)} selects {len(chosen)} rows of Table {number}, not one")
    return chosen[0]


def _same(printed: str, value: Any) -> bool:
    try:
        return float(printed) == float(value)
    except (TypeError, ValueError):
        return printed == str(value)


def exact(value: object) -> Decimal:
    """Return a printed number without binary rounding error: ``exact(0.31)`` is 0.31."""
    return Decimal(str(value))


def rounded(value: Decimal, places: int = 2) -> str:
    """Return ``value`` as text, ties rounded away from zero as on paper."""
    return str(value.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP))
