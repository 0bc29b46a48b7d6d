"""Table 2: seconds per optimiser step of several methods, as ratios measured side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from lora2.experiment.profile import Profile
from lora2.experiment.provenance import provenance
from lora2.experiment.tableplan import Job, TablePlan
from lora2.experiment.timing import Measured, Stepper, interleave
from lora2.report.escape import markdown
from lora2.report.paper_tables import printed_values
from lora2.report.render import TASK_NAMES
from lora2.report.store import write_atomically

ROUNDS = 9
IDENTITY = ("commit", "dirty", "device", "torch", "transformers", "peft")


def measure(
    plan: TablePlan,
    jobs: Sequence[Job],
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every row of a ``times`` table task by task; return one line per row and task.

    Columns: seconds (median), quartiles, tokens and examples of a batch, ``ratio`` to the row that
    ``against`` names (NaN for itself), the paper's seconds and ratio, and where it was measured.
    """
    lines = []
    for task in plan.tasks:
        own = [job for job in jobs if job.task == task]
        tell(f"timing {task}: {len(own)} methods, {rounds} steps each in turn")
        found = interleave([_builder(job) for job in own], rounds)
        lines += _lines(plan, task, own, dict(zip([job.row for job in own], found, strict=True)))
    return pd.DataFrame(lines)


def _builder(job: Job) -> Callable[[], Stepper]:
    return lambda: Stepper(job.resolved.config, job.resolved.steps or 10_000)


def _lines(
    plan: TablePlan, task: str, jobs: Sequence[Job], found: dict[str, Measured]
) -> list[dict[str, object]]:
    where = {key: value for key, value in provenance().items() if key in IDENTITY}
    paper = {row.id: _paper(plan, row.paper_row, task) for row in plan.rows}
    lines: list[dict[str, object]] = []
    for row, job in zip(plan.rows, jobs, strict=True):
        config, own = job.resolved.config, found[row.id]
        base = found.get(row.against) if row.against else None
        quartiles = pd.Series(own.seconds).quantile([0.25, 0.75]).tolist()
        lines.append(
            {
                "table": plan.table,
                "row": row.id,
                "label": row.label,
                "task": task,
                "backbone": config.backbone.name,
                "seconds": own.median,
                "seconds_q1": quartiles[0],
                "seconds_q3": quartiles[1],
                "steps_measured": len(own.seconds),
                "batch_size": config.train.batch_size,
                "tokens": own.tokens,
                "precision": config.train.precision,
                "against": row.against or "",
                "ratio": own.median / base.median if base else math.nan,
                "paper_seconds": paper[row.id],
                "paper_ratio": paper[row.id] / paper.get(row.against or "", math.nan),
                **where,
            }
        )
    return lines


def _paper(plan: TablePlan, row: dict[str, object] | None, task: str) -> float:
    if row is None or not isinstance(plan.table, int):
        return math.nan
    return printed_values(plan.table, row).get((task, "seconds_per_step"), math.nan)


def render(plan: TablePlan, frame: pd.DataFrame, profile: Profile) -> str:
    """Return the table as Markdown: milliseconds and ratio per cell, the paper's ratio below."""
    labels = {row.id: row.label for row in plan.rows}
    tasks = [task for task in plan.tasks if (frame["task"] == task).any()]
    cells = frame.set_index(["row", "task"])
    head = ["Method", *(TASK_NAMES[task] for task in tasks)]
    body = []
    # Seconds on somebody's processor tell a reader nothing; ratios of one run travel.
    absolute = not str(frame["device"].iloc[0]).startswith("cpu")
    for row in plan.rows:
        own = [cells.loc[(row.id, task)] for task in tasks]
        body.append([row.label, *(_cell(one["seconds"], one["ratio"], absolute) for one in own)])
        if any(math.isfinite(one["paper_ratio"]) for one in own):
            ratios = [_ratio(one["paper_ratio"]) for one in own]
            body.append([f"(paper, to {labels.get(row.against or row.id, row.against)})", *ratios])
    grid = [" | ".join(markdown(text) for text in line) for line in (head, *body)]
    first = frame.iloc[0]
    base = ", ".join(
        dict.fromkeys(labels.get(row.against, row.against) for row in plan.rows if row.against)
    )
    return "\n".join(
        [
            f"# Table {plan.table}: {markdown(plan.title)} (profile {profile.name})",
            "",
            f"**Profile {profile.name}: {markdown(profile.note)}**",
            "",
            ("Milliseconds per optimiser step and, in brackets, their" if absolute else "The")
            + f" ratio to {markdown(base)}: medians of {first['steps_measured']} steps, one of "
            "each method in turn in one process, on random batches of each task's full length and "
            "random weights of "
            f"the encoder's shape ({markdown(first['backbone'])}), {first['precision']}, on "
            f"{markdown(first['device'])}.",
            "",
            f"| {grid[0]} |",
            "|" + "---|" * len(head),
            *(f"| {line} |" for line in grid[1:]),
            "",
            "Tokens per example: "
            + ", ".join(
                f"{TASK_NAMES[task]} {cells.loc[(plan.rows[0].id, task)]['tokens']}"
                for task in tasks
            )
            + ".",
            "",
        ]
    )


def _cell(seconds: float, ratio: float, absolute: bool) -> str:
    if not absolute:
        return f"{ratio:.2f}" if math.isfinite(ratio) else "1"
    shown = f"{1000 * seconds:.1f}"
    return f"{shown} ({ratio:.2f})" if math.isfinite(ratio) else shown


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def write(plan: TablePlan, frame: pd.DataFrame, profile: Profile, folder: Path) -> list[Path]:
    """Write table2.csv and table2.md into ``folder``; return their paths."""
    texts = {
        ".csv": frame.to_csv(index=False, lineterminator="\n"),
        ".md": render(plan, frame, profile),
    }
    paths = [folder / f"table{plan.table}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths
