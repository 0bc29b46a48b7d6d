"""Table 2: seconds per optimiser step of several methods, as ratios measured side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from lora2.bench import step
from lora2.bench.step import Measured, batches
from lora2.latex import tex_float
from lora2.markup import markdown
from lora2.paper.numbers import printed_values
from lora2.records.store import SCHEMA, StoreError, check_schema, write_atomically
from lora2.run.provenance import provenance
from lora2.sweep.presets import Profile
from lora2.sweep.table import Job, Table
from lora2.tables.render import TASK_NAMES

ROUNDS = 9
BATCHES = 3  # of each task, taken in turn
STEPS = BATCHES + ROUNDS  # that each method takes of each task, warming up included
COLUMNS = ("row", "task", "backbone", "seconds", "ratio", "paper_ratio", "against", "tokens",
           "steps_measured", "precision", "device")  # fmt: skip
IDENTITY = ("commit", "dirty", "device", "torch", "transformers", "peft")


def measure(
    plan: Table,
    jobs: Sequence[Job],
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure every row of a ``times`` table task by task; return one line per row and task.

    Columns: seconds (median), quartiles, examples of a batch and their mean padded length in
    tokens, ``ratio`` to the row that ``against`` names (the median over rounds; NaN for itself),
    the paper's seconds and ratio, and where it was measured.
    """
    lines = []
    for task in plan.tasks:
        own = [job for job in jobs if job.task == task]
        tell(f"timing {task}: {len(own)} methods, {rounds} steps each in turn")
        runs = {job.row: (job.resolved.config, job.resolved.steps or 10_000) for job in own}
        drawn = batches(own[0].resolved.config, BATCHES)
        lines += _lines(plan, task, own, step.measure(runs, drawn, rounds, BATCHES))
    return pd.DataFrame(lines)


def _lines(
    plan: Table, task: str, jobs: Sequence[Job], found: dict[str, Measured]
) -> list[dict[str, object]]:
    where = {key: value for key, value in provenance().items() if key in IDENTITY}
    paper = {row.id: _paper(plan, row.paper_row, task) for row in plan.rows}
    lines: list[dict[str, object]] = []
    for row, job in zip(plan.rows, jobs, strict=True):
        config, own = job.resolved.config, found[row.id]
        tf32 = config.train.tf32 and config.train.precision == "fp32"
        base = found.get(row.against) if row.against else None
        low, middle, high = step.quartiles(own.seconds)
        lines.append(
            {
                "schema": SCHEMA,
                "table": plan.table,
                "row": row.id,
                "label": row.label,
                "task": task,
                "backbone": config.backbone.name,
                "seconds": middle,
                "seconds_q1": low,
                "seconds_q3": high,
                "steps_measured": len(own.seconds),
                "batch_size": config.train.batch_size,
                "tokens": own.tokens,
                "precision": "tf32" if tf32 else config.train.precision,
                "against": row.against or "",
                "ratio": step.ratio(own.seconds, base.seconds) if base else math.nan,
                "paper_seconds": paper[row.id],
                "paper_ratio": paper[row.id] / paper.get(row.against or "", math.nan),
                **where,
            }
        )
    return lines


def _paper(plan: Table, row: dict[str, object] | None, task: str) -> float:
    if row is None or not isinstance(plan.table, int):
        return math.nan
    return printed_values(plan.table, row).get((task, "seconds_per_step"), math.nan)


def render(plan: Table, frame: pd.DataFrame, profile: Profile) -> str:
    """Return the table as Markdown: milliseconds and ratio per cell, the paper's ratio below."""
    head, *rows = [[markdown(text) for text in line] for line in _grid(plan, frame)]
    return "\n".join(
        [
            f"# {markdown(_title(plan, profile))}",
            "",
            f"**Profile {profile.name}: {markdown(profile.note)}**",
            "",
            markdown(_about(plan, frame)),
            "",
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *(f"- {markdown(note)}" for note in _notes(frame)),
            "",
        ]
    )


def latex(plan: Table, frame: pd.DataFrame, profile: Profile) -> str:
    """Return the table as a LaTeX float; ``tex_float`` says what that needs."""
    warning = f"Profile {profile.name}: {profile.note}"
    about = f"{_title(plan, profile)}. {warning} {_about(plan, frame)}"
    return tex_float(plan.table, about, _grid(plan, frame), _notes(frame))


def _title(plan: Table, profile: Profile) -> str:
    return f"Table {plan.table}: {plan.title} (profile {profile.name})"


def _about(plan: Table, frame: pd.DataFrame) -> str:
    """How to read a cell, and where it was measured."""
    labels = {row.id: row.label for row in plan.rows}
    bases = [labels.get(row.against, row.against) for row in plan.rows if row.against]
    shown = "Milliseconds per optimiser step and, in brackets, their" if _on_gpu(frame) else "The"
    first = frame.iloc[0]
    return (
        f"{shown} ratio to {', '.join(dict.fromkeys(bases))}: medians of "
        f"{first['steps_measured']} steps, one of each method in turn in one process, on batches "
        "of each task's length and random weights of the encoder's shape "
        f"({first['backbone']}), {first['precision']}, on {first['device']}."
    )


def _notes(frame: pd.DataFrame) -> list[str]:
    """What stands under the table: lengths, and code that no commit holds."""
    tokens = frame.drop_duplicates("task")
    lengths = [f"{TASK_NAMES[one.task]} {one.tokens:.0f}" for one in tokens.itertuples()]
    notes = [f"Tokens per example, padding included: {', '.join(lengths)}."]
    if (frame["dirty"].astype(str) == "True").any():
        notes.append("Measured with uncommitted changes in the tree.")
    return notes


def _grid(plan: Table, frame: pd.DataFrame) -> list[list[str]]:
    """The printed table, unescaped: a head, then per row ours and the paper's ratio."""
    labels = {row.id: row.label for row in plan.rows}
    tasks = [task for task in plan.tasks if (frame["task"] == task).any()]
    cells = frame.set_index(["row", "task"])
    lines = [["Method", *(TASK_NAMES[task] for task in tasks)]]
    for row in plan.rows:
        if row.id not in set(frame["row"]):  # a file of an earlier version may lack some
            continue
        own = [cells.loc[(row.id, task)] for task in tasks]
        found = [_cell(one["seconds"], one["ratio"], _on_gpu(frame)) for one in own]
        lines.append([row.label, *found])
        if any(math.isfinite(one["paper_ratio"]) for one in own):
            ratios = [_ratio(one["paper_ratio"]) for one in own]
            lines.append([f"(paper, to {labels.get(row.against or row.id, row.against)})", *ratios])
    return lines


def _on_gpu(frame: pd.DataFrame) -> bool:
    """Seconds on somebody's processor tell a reader nothing; ratios of one run travel."""
    return not str(frame["device"].iloc[0]).startswith("cpu")


def _cell(seconds: float, ratio: float, absolute: bool) -> str:
    if not absolute:
        return f"{ratio:.2f}" if math.isfinite(ratio) else "1"
    shown = f"{1000 * seconds:.1f}"
    return f"{shown} ({ratio:.2f})" if math.isfinite(ratio) else shown


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def write(plan: Table, frame: pd.DataFrame, profile: Profile, folder: Path) -> list[Path]:
    """Write table2.csv, .md and .tex into ``folder``; return their paths."""
    texts = {
        ".csv": frame.to_csv(index=False, lineterminator="\n"),
        ".md": render(plan, frame, profile),
        ".tex": latex(plan, frame, profile),
    }
    paths = [folder / f"table{plan.table}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths


def rewrite(plan: Table, profile: Profile, folder: Path) -> list[Path]:
    """Write the files of ``write`` anew from the times in ``folder``'s CSV; return their paths.

    Raises:
        FileNotFoundError: nothing was measured yet.
        StoreError: the file is damaged, or of another version of this project.
    """
    path = folder / f"table{plan.table}.csv"
    try:
        frame = pd.read_csv(path, dtype={"label": "object", "device": "object"})
    except ValueError as error:  # pandas' errors of parsing are ValueErrors
        raise StoreError(f"{path} is not a table ({error}): measure again") from error
    frame = frame if "schema" in frame else frame.assign(schema=1)  # older than the column
    missing = [name for name in COLUMNS if name not in frame]
    if missing or frame.empty:
        raise StoreError(f"{path} lacks {', '.join(missing) or 'rows'}: measure again")
    check_schema(frame["schema"], path)
    return write(plan, frame.fillna({"against": ""}), profile, folder)
