"""A table of the paper rebuilt from runs: cells, averages, and what to say below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lora2.report import paper_tables, stats, store
from lora2.report.plan import Cell, Plan, Row, cells

AVERAGE = "average"
MIXED = {
    "commit": "commits",
    "backbone": "encoders",
    "backbone_revision": "encoder revisions",
    "protocol": "training protocols",
    "device": "devices",
    "precision": "precisions",
    "python": "Python versions",
    "torch": "torch versions",
    "transformers": "transformers versions",
    "peft": "peft versions",
    "datasets": "datasets versions",
    "accelerate": "accelerate versions",
}

Printed = Mapping[tuple[str, str], float]


def _printed(plan: Plan, row: Row) -> Printed:
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
    printed = _printed(plan, row)
    return [
        {
            "task": task,
            "metric": metric,
            "seeds": " ".join(str(seed) for seed in best.index),
            **_record(
                best[metric].tolist(),
                last[metric].dropna().tolist(),
                printed.get((task, metric), math.nan),
            ),
            **_counts(found),
        }
        for metric in plan.metrics_of(task)
    ]


def paper_average(plan: Plan, row: Row) -> float:
    """The paper's average over the plan's tasks, from its cells; NaN if a cell is not printed.

    Recomputed, because two of the printed averages are not the mean of their row (see audit).
    """
    printed = _printed(plan, row)
    keys = [(task, metric) for task in plan.tasks for metric in plan.metrics_of(task)]
    if not all(key in printed for key in keys):
        return math.nan
    return paper_tables.glue_average({key: printed[key] for key in keys}, plan.tasks)


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


def _used(table: Mapping[str, Mapping[str, Cell]]) -> pd.DataFrame:
    """The finished runs that any cell averages, each once for every row ("label") it is in."""
    found = [
        one.finished.reset_index().assign(label=label)
        for label, own in table.items()
        for one in own.values()
    ]
    return pd.concat(found)


def flags(plan: Plan, runs: pd.DataFrame) -> list[str]:
    """Sentences to print under the table: mixed conditions, uneven selection, lost runs, slips."""
    table = cells(plan, runs)
    shown, notes = _used(table), list(plan.notes)
    used = shown.drop_duplicates("run")
    for column, name in MIXED.items():
        values = sorted({str(v) for v in used.get(column, pd.Series(dtype=str)).dropna()} - {""})
        if len(values) > 1:
            notes.append(f"Runs of {len(values)} {name} are mixed: {', '.join(values)}.")
    dirty = used.get("dirty", pd.Series(dtype=str)).astype(str).str.lower().isin(["true", "1"])
    if dirty.any():
        notes.append(
            f"{dirty.sum()} of {len(used)} runs come from a tree with uncommitted changes."
        )
    marks = used.get("data_marks", pd.Series("", index=used.index)).fillna("").astype(str)
    for task, group in used.assign(data_marks=marks).groupby("task", sort=False):
        prints = set(group.get("data_fingerprint", pd.Series(dtype=str)).dropna())
        if len(prints) > 1:
            notes.append(
                f"Runs of {task} on {len(prints)} different versions of its data are mixed."
            )
        seen = sorted(set(group["data_marks"]) - {""})
        notes += [f"Data of {task}: {', '.join(seen)}."] if seen else []
    return notes + _evaluation_notes(shown) + _early_notes(shown) + _row_notes(plan, table)


def _evaluation_notes(shown: pd.DataFrame) -> list[str]:
    """Tasks in which one row's best score was picked from more evaluations than another's."""
    notes = []
    counts = shown.reindex(columns=["task", "label", "evaluations"]).dropna().drop_duplicates()
    for task, group in counts.groupby("task", sort=False):
        parts = [
            f"{number:.0f} ({' / '.join(part['label'])})"
            for number, part in group.groupby("evaluations")
        ]
        if len(parts) > 1:
            notes.append(
                f"{task}: the best score is of a different number of evaluations: "
                f"{', '.join(parts)}; more of them favour a row."
            )
    return notes


def _early_notes(shown: pd.DataFrame) -> list[str]:
    """Rows and tasks with a best score that was taken before the ranks kept were final."""
    steps = shown.reindex(columns=["steps", "step_best"]).astype(float)
    settings = store.settings(shown)
    final = [_ranks_final(one, n) for one, n in zip(settings, steps["steps"], strict=True)]
    early = shown.loc[steps["step_best"] < final]
    rows = [
        f"{label} ({', '.join(group['task'].unique())})"
        for label, group in early.groupby("label", sort=False)
    ]
    return [
        f"Best scores of a step at which the ranks were not final yet: {'; '.join(rows)}. The "
        "ranks kept are those of the last step."
    ] * bool(rows)


def _ranks_final(settings: Mapping[str, Any], steps: float) -> float:
    """The optimiser step from which a run's ranks stay as they are; 0 where nothing is pruned.

    SoRA's gates move until the last step, budgets (LoRA2, AdaLoRA) are reached at steps - tfinal.
    """
    if settings.get("method.xi") or settings.get("method.xi_max"):
        return steps
    target = settings.get("method.target_r")
    start = settings.get("method.init_r", settings.get("method.r"))
    return 0.0 if target is None or target == start else steps - settings["method.tfinal"]


def _row_notes(plan: Plan, table: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    notes = []
    for row in plan.rows:
        for task, found in table[row.label].items():
            if found.ambiguous:
                notes.append(
                    f"{row.label}, {task}: {found.ambiguous} seed(s) have several runs and are "
                    f"not averaged ({', '.join(found.repeated)}): remove those out of date."
                )
        printed = _printed(plan, row).get((AVERAGE, AVERAGE), math.nan)
        recomputed = paper_average(plan, row)
        whole = len(plan.tasks) == len({task for task, _ in _printed(plan, row)} - {AVERAGE})
        if whole and abs(printed - recomputed) > 0.0051:
            notes.append(
                f"{row.label}: the paper prints an average of {printed:.2f}, its cells give "
                f"{recomputed:.2f}, which is used here."
            )
    return notes
