"""The numbers printed in the paper (arXiv 2408.06854v1), and its rule for averaging GLUE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib import resources
from statistics import mean
from typing import TypeVar

import pandas as pd

from lora2.glue.tasks import TASKS

# The metrics the paper prints for each task, in the order of its Table 1.
TASK_METRICS = {name: task.score_metrics for name, task in TASKS.items()}

# The CSV column that holds each of them.
PAPER_COLUMNS: dict[tuple[str, str], str] = {
    ("cola", "matthews_correlation"): "cola_mcc",
    ("sst2", "accuracy"): "sst2_acc",
    ("mrpc", "accuracy"): "mrpc_acc",
    ("qqp", "accuracy"): "qqp_acc",
    ("qqp", "f1"): "qqp_f1",
    ("stsb", "pearson"): "stsb_pearson",
    ("mnli", "matched_accuracy"): "mnli_m_acc",
    ("mnli", "mismatched_accuracy"): "mnli_mm_acc",
    ("qnli", "accuracy"): "qnli_acc",
    ("rte", "accuracy"): "rte_acc",
}


Number = TypeVar("Number", float, Decimal)


@cache
def _read(name: str) -> pd.DataFrame:
    with resources.as_file(resources.files("lora2.paper") / name) as path:
        return pd.read_csv(path)


def table(number: int) -> pd.DataFrame:
    """Table 1 to 5 as printed; scores in percent, Table 2 in seconds per step."""
    if number not in range(1, 6):
        raise ValueError(f"the paper has no Table {number}: choose 1, 2, 3, 4 or 5")
    return _read(f"table{number}.csv").copy()


def hyperparameters() -> pd.DataFrame:
    """The settings of the public LoRA2 and AdaLoRA scripts, one row per method and task."""
    return _read("hyperparameters.csv").copy()


def claims() -> pd.DataFrame:
    """Numbers and comparisons stated in the paper's text, indexed by a short name."""
    return _read("claims.csv").set_index("id")


def statements() -> pd.DataFrame:
    """The claims of the paper that a study is held against, indexed by a short name."""
    return _read("statements.csv").set_index("id")


def glue_average(values: Mapping[tuple[str, str], Number], tasks: Sequence[str]) -> Number:
    """Mean over ``tasks``, each first averaged over its own metrics found in ``values``.

    This is the rule behind the paper's Avg column: QQP counts once as the mean of accuracy
    and F1, MNLI once as the mean of matched and mismatched accuracy.
    Raises KeyError if a task has no value.
    """
    means = []
    for task in tasks:
        found = [value for (name, _), value in values.items() if name == task]
        if not found:
            raise KeyError(f"no value for task {task!r}: the average needs every task")
        means.append(mean(found))
    return mean(means)


def printed_values(number: int, row: Mapping[str, object]) -> dict[tuple[str, str], float]:
    """What the paper prints for one row: (task, metric) -> number.

    ``row`` selects it by column values of the table's CSV, e.g. ``{"method": "lora2", "rank": 8}``.
    Table 2 has its methods in columns: ``{"column": "lora2_s_per_it"}``.
    The printed average, where there is one, is under ``("average", "average")``.
    Raises LookupError unless exactly one row is selected.
    """
    frame = table(number)
    if number == 2:
        column = str(row.get("column"))
        if column not in frame.columns[1:]:
            raise LookupError(f"Table 2 has no column {column!r}: {list(frame.columns[1:])}")
        seconds = frame.set_index("task")[column]
        return {(str(t), "seconds_per_step"): float(v) for t, v in seconds.items()}
    record = _select(number, row)
    values = {key: float(record[c]) for key, c in PAPER_COLUMNS.items() if c in frame.columns}
    return values | {("average", "average"): float(record["avg_printed"])}


def printed_size(number: int | str, row: Mapping[str, object]) -> str:
    """Return the parameter count that the paper prints for one row, as printed; "" where none."""
    if number not in (1, 4):
        return ""
    record = _select(int(number), row)
    return str(record["params" if number == 1 else "params_printed"])


def _select(number: int, row: Mapping[str, object]) -> pd.Series:
    frame = table(number)
    unknown = sorted(set(row) - set(frame.columns))
    if unknown or not row:
        raise LookupError(f"Table {number} is selected by {list(frame.columns)}, not {dict(row)}")
    chosen = frame.loc[(frame[list(row)] == pd.Series(dict(row))).all(axis=1)]
    if len(chosen) != 1:
        raise LookupError(f"{dict(row)} selects {len(chosen)} rows of Table {number}, not one")
    return chosen.iloc[0]
