"""A table of the paper rebuilt from runs: cells and averages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from lora2.paper import numbers as paper_tables
from lora2.paper.finding import exact, rounded
from lora2.tables import stats
from lora2.tables.plan import Cell, Plan, Row, cells

AVERAGE = "average"
Printed = Mapping[tuple[str, str], float]


def printed(plan: Plan, row: Row) -> Printed:
    """The paper's numbers of a row by task and metric; none where it has no such row."""
    return paper_tables.printed_values(plan.table, row.paper_row) if row.paper_row else {}


def _scores(plan: Plan, found: Cell, task: str, which: str) -> pd.DataFrame:
    """Seeds x metrics, in percent."""
    columns = {f"{which}_{metric}": metric for metric in plan.metrics_of(task)}
    scores = found.finished.reindex(columns=list(columns)).rename(columns=columns)
    return 100.0 * scores.astype(float)


def _record(best: list[float], last: list[float], paper: float) -> dict[str, float]:
    """The numbers of one cell; ``last`` may hold fewer values than ``best``, never NaN."""
    shown, final = stats.summary(best), stats.summary(last)
    return {
        **{("ci_" + k if k in ("low", "high") else k): v for k, v in shown._asdict().items()},
        "last_mean": final.mean if final.n == shown.n else math.nan,
        "last_std": final.std if final.n == shown.n else math.nan,
        "paper": paper,
        "difference": shown.mean - paper,
    }


def _counts(found: Cell) -> dict[str, int]:
    lost = {k: getattr(found, k) for k in ("failed", "diverged", "ambiguous", "missing")}
    return {"planned": found.planned, **lost}


def _task_records(plan: Plan, row: Row, found: Cell, task: str) -> list[dict]:
    best = _scores(plan, found, task, "best")
    last = _scores(plan, found, task, "last")
    paper = printed(plan, row)
    return [
        {
            "task": task,
            "metric": metric,
            "seeds": " ".join(str(seed) for seed in best.index),
            **_record(
                best[metric].tolist(),
                last[metric].dropna().tolist(),
                paper.get((task, metric), math.nan),
            ),
            **_counts(found),
        }
        for metric in plan.metrics_of(task)
    ]


def paper_average(plan: Plan, row: Row) -> float:
    """The paper's average over the plan's tasks, from its cells; NaN if a cell is not printed.

    Recomputed, because two of the printed averages are not the mean of their row (see audit).
    """
    paper = printed(plan, row)
    keys = [(task, metric) for task in plan.tasks for metric in plan.metrics_of(task)]
    if not all(key in paper for key in keys):
        return math.nan
    return paper_tables.glue_average({key: paper[key] for key in keys}, plan.tasks)


def as_printed(average: float) -> str:
    """A mean of printed numbers with two decimals, ties away from zero: 84.475 -> "84.48"."""
    return rounded(exact(round(average, 6)))


def _average_record(plan: Plan, row: Row, row_cells: Mapping[str, Cell]) -> dict | None:
    """The average by the paper's rule; None unless every task has a finished run.

    Per seed, with deviation and interval, where all tasks have the same seeds; else the mean of
    the tasks' means, alone.
    """
    if any(found.finished.empty for found in row_cells.values()):
        return None
    values = {}
    for which in ("best", "last"):
        scores = {t: _scores(plan, found, t, which) for t, found in row_cells.items()}
        means = {t: frame.mean(axis=1, skipna=False) for t, frame in scores.items()}
        together = pd.DataFrame(means)  # seeds x tasks, NaN where a task lacks a seed
        if together.notna().all(axis=None):
            values[which] = together.mean(axis=1).tolist()
        elif all(mean.notna().all() for mean in means.values()):
            values[which] = [sum(mean.mean() for mean in means.values()) / len(means)]
        else:
            values[which] = []
    sizes = [len(found.finished) for found in row_cells.values()]
    record = _record(values["best"], values["last"], paper_average(plan, row))
    counts = pd.DataFrame([_counts(found) for found in row_cells.values()])
    same = len(values["best"]) == min(sizes) == max(sizes)
    return {
        "task": AVERAGE,
        "metric": AVERAGE,
        "seeds": " ".join(str(s) for s in next(iter(row_cells.values())).finished.index) * same,
        **record,
        "n": min(sizes),
        **counts.sum().to_dict(),
        "planned": int(counts["planned"].max()),
    }


def build(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """The long form of a table: one line per row, task and metric, and one per average.

    Scores in percent; ``mean``, ``std``, ``ci_low``, ``ci_high``
    over seeds at the best evaluation of each run, ``last_*`` after its last step; ``paper`` and
    ``difference`` (ours minus the paper's); ``planned`` = n + failed + diverged + ambiguous +
    missing, of which only n are averaged.
    """
    lines, table = [], cells(plan, runs)
    for row in plan.rows:
        own = table[row.label]
        used = pd.concat([found.finished for found in own.values()])
        identity = {"table": plan.table, "label": row.label, "method": row.method, "ours": row.ours}
        sizes = {
            name: used[name].astype(float).mean() if name in used and len(used) else math.nan
            for name in ("params_adapter", "params_kept", "params_head", "params_encoder")
        }
        records = [r for task in plan.tasks for r in _task_records(plan, row, own[task], task)]
        average = _average_record(plan, row, own)
        lines += [{**identity, **r, **sizes} for r in [*records, *([average] if average else [])]]
    return pd.DataFrame(lines)
