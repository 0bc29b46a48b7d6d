"""What a table is made of, and which runs belong to a cell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lora2.report import store
from lora2.report.paper_tables import TASK_METRICS

ROW_KEYS = {"label", "method", "match", "paper_row", "ours", "against", "runs"}
PLAN_KEYS = {"table", "rows", "tasks", "seeds", "metrics", "title"}


class PlanError(ValueError):
    """A table plan that cannot be read; the message names the key."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    ``match`` gives settings by dotted key (or columns of runs.csv) that its runs must have;
    ``runs``, where given, names its runs outright. ``against`` is the label of the row that the
    statistics compare it with; left out, see ``Plan.reference``.
    """

    label: str
    method: str
    match: Mapping[str, Any] = field(default_factory=dict)
    paper_row: Mapping[str, Any] | None = None
    ours: bool = False
    against: str | None = None
    runs: Sequence[str] | None = None


@dataclass(frozen=True)
class Plan:
    """The rows, tasks and seeds of one table of the paper.

    ``seeds`` None takes whatever seeds were run. ``metrics`` replaces the paper's metrics of a
    task, as Table 3 (MNLI mismatched only) and Table 2 (``seconds_per_step``) need.
    """

    table: int | str
    rows: Sequence[Row]
    tasks: Sequence[str]
    seeds: Sequence[int] | None = None
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    title: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)  # said in the heading
    suffix: str = ""  # of the files' names, for a variant of the whole table

    def metrics_of(self, task: str) -> tuple[str, ...]:
        return tuple(self.metrics.get(task, TASK_METRICS[task]))

    def reference(self, row: Row) -> Row | None:
        """The row to compare ``row`` with: its ``against``; else, for a baseline, the next row
        of ours below it, and for a row of ours the last one of ours. None for that one itself.
        """
        ours = [other for other in self.rows if other.ours]
        if row.against is not None:
            chosen = next(other for other in self.rows if other.label == row.against)
        elif not ours:
            return None
        elif row.ours:
            chosen = ours[-1]
        else:
            below = list(self.rows)[list(self.rows).index(row) :]
            chosen = next((other for other in below if other.ours), ours[-1])
        return None if chosen is row else chosen


def _row(data: Mapping[str, Any]) -> Row:
    unknown = sorted(set(data) - ROW_KEYS)
    if unknown or not {"label", "method"} <= set(data):
        raise PlanError(
            f"row {dict(data)}: needs label and method, may have {', '.join(sorted(ROW_KEYS))}"
        )
    return Row(**{**data, "match": data.get("match") or {}})


def parse(data: Mapping[str, Any]) -> Plan:
    """A plan from the mapping of a table's YAML file.

    Raises PlanError for unknown keys, tasks or references and for labels used twice.
    """
    unknown = sorted(set(data) - PLAN_KEYS)
    if unknown or not {"table", "rows", "tasks"} <= set(data):
        raise PlanError(
            f"a table plan needs table, rows and tasks, may have seeds, metrics and title; "
            f"not {', '.join(unknown) or 'fewer'}"
        )
    wrong = [task for task in data["tasks"] if task not in TASK_METRICS]
    if wrong:
        raise PlanError(f"unknown task {wrong[0]!r}: choose from {', '.join(TASK_METRICS)}")
    rows = [_row(row) for row in data["rows"]]
    labels = [row.label for row in rows]
    if len(set(labels)) != len(labels):
        raise PlanError(f"two rows share a label among {labels}: give each its own")
    for row in rows:
        if row.against is not None and row.against not in labels:
            raise PlanError(f"row {row.label!r} is against {row.against!r}, which is no row here")
    return Plan(**{**data, "rows": rows, "metrics": data.get("metrics") or {}})


def _same(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and list(wanted) == found
    return bool(wanted == found)


def select(runs: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The runs of a row, whatever their task, seed and status."""
    keep = runs["method"] == row.method
    if row.runs is not None:
        keep &= runs["run"].isin(list(row.runs))
    settings = store.settings(runs)
    for key, wanted in row.match.items():
        if key in runs.columns:
            found = runs[key].tolist()
        else:
            found = [config.get(key, ...) for config in settings]
        keep &= pd.Series([_same(wanted, value) for value in found], index=runs.index, dtype=bool)
    return runs.loc[keep]


@dataclass(frozen=True)
class Cell:
    """The runs of one row and task: those to average, by seed, and the others counted.

    ``repeated`` names the runs of the ambiguous seeds.
    """

    finished: pd.DataFrame
    failed: int
    diverged: int
    ambiguous: int
    missing: int
    repeated: tuple[str, ...]

    @property
    def planned(self) -> int:
        return len(self.finished) + self.failed + self.diverged + self.ambiguous + self.missing


def score_column(metric: str, which: str = "best") -> str:
    """The column of runs.csv with a metric: times and the like have no best and last."""
    return metric if metric == "seconds_per_step" else f"{which}_{metric}"


def _cell(plan: Plan, task: str, chosen: pd.DataFrame) -> Cell:
    chosen = chosen.loc[chosen["task"] == task]
    if plan.seeds is not None:
        chosen = chosen.loc[chosen["seed"].isin(list(plan.seeds))]
    twice = chosen["seed"].duplicated(keep=False)
    single = chosen.loc[~twice]
    columns = [score_column(metric) for metric in plan.metrics_of(task)]
    scored = single.reindex(columns=columns).notna().all(axis=1)
    finished = single.loc[(single["status"] == "finished") & scored]
    diverged = int((single["status"] == "diverged").sum())
    repeated = chosen.loc[twice]
    seen = chosen["seed"].nunique()
    return Cell(
        finished=finished.set_index("seed").sort_index(),
        failed=len(single) - len(finished) - diverged,
        diverged=diverged,
        ambiguous=int(repeated["seed"].nunique()),
        missing=len(set(plan.seeds)) - seen if plan.seeds is not None else 0,
        repeated=tuple(repeated["run"]),
    )


def cells(plan: Plan, runs: pd.DataFrame) -> dict[str, dict[str, Cell]]:
    """The cells of a table by row label and task, its runs sorted by what became of them.

    Two runs of one seed cannot both count: the seed is ambiguous and neither is averaged. A
    finished run without one of the task's metrics counts as failed.
    """
    return {
        row.label: {task: _cell(plan, task, chosen) for task in plan.tasks}
        for row in plan.rows
        for chosen in [select(runs, row)]
    }
