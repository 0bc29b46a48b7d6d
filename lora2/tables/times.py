"""Make Table 2: seconds per optimiser step of several methods, measured side by side."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lora2.bench import step
from lora2.bench.step import Measured, batches
from lora2.markup import grid, markdown, tex_float
from lora2.records.store import SCHEMA, StoreError, check_schema, readable
from lora2.run.device import provenance
from lora2.sweep.pool import plan_workers
from lora2.sweep.table import Job, Profile, Table
from lora2.tables.build import printed
from lora2.tables.render import TASK_NAMES, Grid, heading, publish

# Steps of each method on each task, measured and to warm up; fewer on a CPU, which is slow.
ROUNDS, WARM_UP = (9, 3) if torch.cuda.is_available() else (3, 1)
STEPS = ROUNDS + WARM_UP
COLUMNS = ("row", "task", "backbone", "seconds", "ratio", "paper_ratio", "against", "tokens",
           "steps_measured", "precision", "device", "dirty")  # fmt: skip
IDENTITY = ("commit", "dirty", "device", "torch", "transformers", "peft")


def measure(
    table: Table, jobs: Sequence[Job], rounds: int = ROUNDS, tell: Callable[[str], None] = print
) -> pd.DataFrame:
    """Measure every row of a ``times`` table task by task; return one line per row and task.

    ``seconds`` are medians, ``tokens`` the mean padded length, ``ratio`` the median over rounds of
    the ratio to the row that ``against`` names (NaN without one).
    """
    # A worker's threads: more of them slow a tiny encoder down.
    torch.set_num_threads(int(plan_workers(jobs)[0]["OMP_NUM_THREADS"]))
    gc.freeze()  # the collection after each task skips everything imported
    lines = list[dict[str, Any]]()
    for task in table.tasks:
        of_task = [job for job in jobs if job.task == task]
        tell(f"timing {task}: {len(of_task)} methods, {rounds} steps each in turn")
        runs = {job.row: (job.resolved.config, job.resolved.steps or 10_000) for job in of_task}
        drawn = batches(of_task[0].resolved.config, 3)  # taken in turn
        measured = step.measure(runs, drawn, rounds, WARM_UP, count=False)
        lines += _lines(table, task, of_task, measured)
    return pd.DataFrame(lines)


def _lines(
    table: Table, task: str, jobs: Sequence[Job], measured: dict[str, Measured]
) -> list[dict[str, Any]]:
    where = {key: value for key, value in provenance().items() if key in IDENTITY}
    place = (task, "seconds_per_step")
    paper = {row.id: printed(table, row).get(place, math.nan) for row in table.rows}
    lines: list[dict[str, Any]] = []
    for row, job in zip(table.rows, jobs, strict=True):
        config, taken = job.resolved.config, measured[row.id]
        tf32 = config.train.tf32 and config.train.precision == "fp32"
        base = measured.get(row.against) if row.against else None
        low, middle, high = step.quartiles(taken.seconds)
        lines.append(
            {"schema": SCHEMA, "table": table.table, "row": row.id, "label": row.label,
             "task": task, "backbone": config.backbone.name, "seconds": middle,
             "seconds_q1": low, "seconds_q3": high, "steps_measured": len(taken.seconds),
             "batch_size": config.train.batch_size, "tokens": taken.tokens,
             "precision": "tf32" if tf32 else config.train.precision, "against": row.against or "",
             "ratio": step.ratio(taken.seconds, base.seconds) if base else math.nan,
             "paper_seconds": paper[row.id],
             "paper_ratio": paper[row.id] / paper.get(row.against or "", math.nan), **where}
        )  # fmt: skip
    return lines


def texts(table: Table, times: pd.DataFrame, profile: Profile) -> dict[str, str]:
    """Return the table's files by the ending of their names."""
    title, opening = heading(table, profile, {})
    about, cells = _about(table, times), _grid(table, times)
    lengths = [f"{TASK_NAMES[line.task]} {line.tokens:.0f}"
               for line in times.drop_duplicates("task").itertuples()]  # fmt: skip
    notes = [f"Tokens per example, padding included: {', '.join(lengths)}."]
    if (times["dirty"].astype(str) == "True").any():
        notes.append("Measured with uncommitted changes in the tree.")
    page = [*opening, markdown(about), "", *grid(cells), "",
            *(f"- {markdown(note)}" for note in notes), ""]  # fmt: skip
    return {
        ".csv": times.to_csv(index=False, lineterminator="\n"),
        ".md": "\n".join(page),
        ".tex": tex_float(f"{title} {about}", cells, notes),
    }


def _about(table: Table, times: pd.DataFrame) -> str:
    labels = {row.id: row.label for row in table.rows}
    bases = dict.fromkeys(labels.get(row.against, row.against) for row in table.rows if row.against)
    shown = "Milliseconds per optimiser step and, in brackets, their" if _on_gpu(times) else "The"
    first = times.iloc[0]
    return (
        f"{shown} ratio to {', '.join(bases)}: medians of "
        f"{first['steps_measured']} steps, one of each method in turn in one process, on batches "
        "of each task's length and random weights of the encoder's shape "
        f"({first['backbone']}), {first['precision']}, on {first['device']}."
    )


def _grid(table: Table, times: pd.DataFrame) -> Grid:
    """Return per row milliseconds (not a CPU's) and their ratio, then the paper's ratio."""
    on_gpu, cells = _on_gpu(times), times.set_index(["row", "task"])
    labels = {row.id: row.label for row in table.rows}
    lines = [["Method", *(TASK_NAMES[task] for task in table.tasks)]]
    for row in table.rows:
        line = [cells.loc[(row.id, task)] for task in table.tasks]
        lines.append([row.label, *(_cell(cell["seconds"], cell["ratio"], on_gpu) for cell in line)])
        ratios = [_ratio(cell["paper_ratio"], "–") for cell in line]
        if set(ratios) != {"–"}:
            lines.append([f"(paper, to {labels.get(row.against or row.id, row.against)})", *ratios])
    return lines


def _on_gpu(times: pd.DataFrame) -> bool:
    return not str(times["device"].iloc[0]).startswith("cpu")


def _cell(seconds: float, ratio: float, absolute: bool) -> str:
    shown = f"{1000 * seconds:.1f}" + (f" ({ratio:.2f})" if math.isfinite(ratio) else "")
    return shown if absolute else _ratio(ratio, "1")


def _ratio(value: float, otherwise: str) -> str:
    return f"{value:.2f}" if math.isfinite(value) else otherwise


def rewrite(table: Table, profile: Profile, folder: Path) -> str:
    """Write the table's files again from the times in ``folder``'s CSV; return what to print."""
    path = folder / f"{table.stem}.csv"
    with readable(f"{path} is not a table", "measure again"):
        times = pd.read_csv(path, dtype={"label": "object", "device": "object"})
    missing = [name for name in ("schema", *COLUMNS) if name not in times]
    cells = {(row.id, task) for row in table.rows for task in table.tasks}
    if missing or not cells <= set(zip(times["row"], times["task"], strict=True)):
        raise StoreError(f"{path} lacks {', '.join(missing) or 'rows'}: measure again")
    check_schema(times["schema"], path)
    written = texts(table, times.fillna({"against": ""}), profile)
    return publish(folder, table.stem, written, whole=True)
