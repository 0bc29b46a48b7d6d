"""What a table is made of, and which runs belong to a cell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lora2.paper.numbers import TASK_METRICS


@dataclass(frozen=True)
class Row:
    """One row of a table and the names of its runs, whatever their task, seed and status.

    ``paper_row`` selects the paper's row by column values. ``against`` is the label of the row that
    the statistics compare it with; None: it is itself the one to compare with.
    """

    label: str
    method: str
    runs: Sequence[str]
    paper_row: Mapping[str, Any] | None = None
    ours: bool = False
    against: str | None = None


@dataclass(frozen=True)
class Plan:
    """The rows, tasks and seeds of one table of the paper.

    ``seeds`` None takes whatever seeds were run. ``metrics`` replaces the paper's metrics of a
    task, as Table 3 (MNLI mismatched only) needs.
    """

    table: int | str
    rows: Sequence[Row]
    tasks: Sequence[str]
    seeds: Sequence[int] | None = None
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    title: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)  # said in the heading
    suffix: str = ""  # of the files' names, for a variant of the whole table
    notes: Sequence[str] = ()  # said under the table before what its runs give reason to say

    def metrics_of(self, task: str) -> tuple[str, ...]:
        return tuple(self.metrics.get(task, TASK_METRICS[task]))

    def reference(self, row: Row) -> Row | None:
        """The row to compare ``row`` with; None where there is none."""
        return next((other for other in self.rows if other.label == row.against), None)


def select(runs: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The runs of a row, whatever their task, seed and status."""
    return runs.loc[runs["run"].isin(list(row.runs))]


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


def _cell(plan: Plan, task: str, chosen: pd.DataFrame) -> Cell:
    chosen = chosen.loc[chosen["task"] == task]
    if plan.seeds is not None:
        chosen = chosen.loc[chosen["seed"].isin(list(plan.seeds))]
    twice = chosen["seed"].duplicated(keep=False)
    single = chosen.loc[~twice]
    columns = [f"best_{metric}" for metric in plan.metrics_of(task)]
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
