"""The tables of a study's page: results, what did not start, significance, time and memory."""

from __future__ import annotations

import math

import pandas as pd

from lora2.glue.tasks import TASKS
from lora2.report import stats
from lora2.report.escape import grid as markdown_grid
from lora2.report.render import METRIC_NAMES, TASK_NAMES, comparison_grid
from lora2.report.study_data import Results, majority, standard_error

Grid = list[list[str]]
DASH = "–"
IDLE_MARK = " †"


def title(table: str) -> str:
    """What a reader calls a table."""
    if table == "figure3":
        return "Figure 3"
    return f"Table {table}" if table.isdigit() else f"Table “{table}”"


def scores(results: Results, table: str) -> list[str]:
    """A table's rows with their sizes, best and last score on each task."""
    tasks = results.tasks(table)
    names = [f"{TASK_NAMES[t]} ({_metrics(results, table, t)})" for t in tasks]
    heads = [f"{name}, {which}" for name in names for which in ("best", "last")]
    lines: Grid = [["Method", "Trainable", "Kept", *heads]]
    for row, label in results.rows(table).items():
        own = [results.cell(table, row, task) for task in tasks]
        used = pd.concat(own)
        sizes = [_sizes(used, column) for column in ("params_adapter", "params_kept")]
        cells = [
            _score(cell, column) + IDLE_MARK * results.idle(table, row, task)
            for task, cell in zip(tasks, own, strict=True)
            for column in ("score_best", "score_last")
        ]
        lines.append([label, *sizes, *cells])
    return markdown_grid(lines)


def _metrics(results: Results, table: str, task: str) -> str:
    return "/".join(METRIC_NAMES.get(one, one) for one in TASKS[task].score_metrics)


def _sizes(used: pd.DataFrame, column: str) -> str:
    """The count, or the range over tasks and seeds."""
    counts = used[column].dropna().astype(int)
    ends = dict.fromkeys((counts.min(), counts.max())) if len(counts) else {}
    return " to ".join(f"{one:,}" for one in ends) or DASH


def _score(cell: pd.DataFrame, column: str) -> str:
    shown = stats.summary(cell[column].astype(float))
    if not shown.n:
        return DASH
    deviation = f" ± {shown.std:.2f}" if math.isfinite(shown.std) else ""
    return f"{shown.mean:.2f}{deviation} (n={shown.n})"


def idle_note(results: Results) -> list[str]:
    """Which cells have seeds that did not rise above the majority class, and how many."""
    lines = []
    for table in results.tables:
        for row, label in results.rows(table).items():
            for task in results.tasks(table):
                own = results.cell(table, row, task)
                counts = [f"{int(own[one].sum())} of {len(own)}" for one in ("idle", "constant")]
                if own["idle"].any():
                    lines.append([title(table), label, TASK_NAMES[task], *counts])
    if not lines:
        return ["Every run of the study rose above the majority class."]
    head = ["Table", "Method", "Task", "Seeds not above the majority class",
            "of which gave one class to all"]  # fmt: skip
    about = (
        "† not above the majority class: on every seed the best score is at most one standard "
        f"error above that of giving all examples that class ({_bounds(results)}): this budget was "
        f"too short for it. {idle_count(results)} Cells with such seeds:"
    )
    return [about, "", *markdown_grid([head, *lines])]


def _bounds(results: Results) -> str:
    """The majority's score of each task, and its standard error."""
    said = []
    for task in results.tasks("1"):
        if (base := majority(task)) is not None:
            error = standard_error(task, base)
            said.append(f"{TASK_NAMES[task]} {base:.2f}, standard error {error:.2f}")
    return "; ".join(said)


def idle_count(results: Results) -> str:
    """How many rows of Table 1 did not rise above the majority class, by task, in a sentence."""
    said = []
    for task in results.tasks("1"):
        rows = [row for row in results.rows("1") if len(results.cell("1", row, task))]
        idle = sum(results.idle("1", row, task) for row in rows)
        said.append(f"{TASK_NAMES[task]} {idle} of {len(rows)}")
    return f"Rows of Table 1 not above the majority class: {', '.join(said)}."


def significance(results: Results) -> list[str]:
    """The paired tests that were made beside each table, by seed and by example."""
    lines: list[str] = []
    for table, frame in results.tests.items():
        grid = comparison_grid(frame)
        if len(grid) > 1:
            lines += [f"{title(table)} ({results.folder}/table{table}_tests.csv):", ""]
            lines += [*markdown_grid(grid), ""]
    return lines or ["No tests were made: no row shares a seed with the one it is set against."]


def on_processor(results: Results) -> bool:
    """Whether a run was made on a processor, whose cores and memory runs share with each other."""
    devices = results.runs["device"].dropna().astype(str)
    return bool(devices.str.startswith("cpu").any())


def cost(results: Results) -> list[str]:
    """Time of an optimiser step of each row and task of Table 1; on a GPU also ms and memory."""
    tasks, alone = results.tasks("1"), not on_processor(results)
    base = {task: _time(results, "lora-r8", task) for task in tasks}
    lines: Grid = [["Method"]]
    for task in tasks:
        more = [f"{TASK_NAMES[task]}, ms a step", "peak memory, MB"] * alone
        lines[0] += [f"{TASK_NAMES[task]}, time to LoRA r=8", *more]
    for row, label in results.rows("1").items():
        line = [label]
        for task in tasks:
            seconds, own = _time(results, row, task), results.cell("1", row, task)
            line.append(_number(seconds / base[task], ".2f"))
            if alone:
                line.append(_number(1000 * seconds, ",.0f"))
                line.append(_number(own["peak_memory_mb"].astype(float).max(), ",.0f"))
        lines.append(line)
    return markdown_grid(lines)


def _time(results: Results, row: str, task: str) -> float:
    """Median over seeds, seconds; NaN where there is no run."""
    return float(results.cell("1", row, task)["seconds_per_step"].astype(float).median())


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else DASH
