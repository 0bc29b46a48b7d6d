"""What a table's file says of the paper and of metrics, checked before its runs, not after them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from lora2.config.problems import Problem, unknown
from lora2.glue.tasks import TASKS


def check_metrics(
    where: str, tasks: Sequence[str], metrics: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    """Yield what ``metrics`` (task -> names) asks of a task that is not there or has not that."""
    for task, names in metrics.items():
        if task not in tasks:
            yield unknown(f"{where}.metrics.{task}", names, tasks, "not a task of it", task)
            continue
        for name in names:
            known = TASKS[task].metric_names
            if name not in known:
                yield unknown(f"{where}.metrics.{task}", name, known)


def check_paper_row(where: str, table: int | str, row: Mapping[str, Any] | None) -> list[Problem]:
    """Return why ``row`` (column -> value) does not select one row of the paper's ``table``."""
    if row is None:
        return []
    key = f"{where}, paper_row"
    lines = _printed(table)
    if not lines:
        return [Problem(key, row, f"null: the paper prints no Table {table}")]
    if table == 2:  # its methods are columns
        row, lines = (
            {"column": row.get("column")},
            [{"column": name} for name in list(lines[0])[1:]],
        )
    unknown = [name for name in row if name not in lines[0]]
    if unknown or not row:
        return [Problem(key, dict(row), f"columns of Table {table}: {', '.join(lines[0])}")]
    found = [one for one in lines if all(_same(one[name], row[name]) for name in row)]
    if len(found) == 1:
        return []
    return [Problem(key, dict(row), f"one row of Table {table}: these select {len(found)}")]


def _printed(table: int | str) -> list[dict[str, str]]:
    path = resources.files("lora2") / "paper" / f"table{table}.csv"
    if not isinstance(table, int) or not path.is_file():
        return []
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _same(printed: str, value: Any) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(printed) == value
        except ValueError:
            return False
    return printed == str(value)
