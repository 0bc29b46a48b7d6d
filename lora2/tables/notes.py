"""What to say below a table: mixed conditions, uneven selection, lost runs, slips of the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lora2.records import store
from lora2.tables.build import AVERAGE, as_printed, paper_average, printed
from lora2.tables.plan import Cell, Plan, cells

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
    return [
        *notes,
        *_data_notes(plan, used),
        *_evaluation_notes(shown),
        *_early_notes(shown),
        *_row_notes(plan, table),
    ]


def _data_notes(plan: Plan, used: pd.DataFrame) -> list[str]:
    """Tasks whose runs had different data, and what is said of the data, alike tasks together."""
    notes, said = [], dict[str, list[str]]()
    marks = used.get("data_marks", pd.Series("", index=used.index)).fillna("").astype(str)
    for task, group in used.assign(data_marks=marks).groupby("task", sort=False):
        prints = set(group.get("data_fingerprint", pd.Series(dtype=str)).dropna())
        if len(prints) > 1:
            notes.append(
                f"Runs of {task} on {len(prints)} different versions of its data are mixed."
            )
        if seen := sorted(set(group["data_marks"]) - {""}):
            said.setdefault(", ".join(seen), []).append(str(task))
    for text, tasks in said.items():
        where = "all tasks" if 1 < len(tasks) == len(plan.tasks) else ", ".join(tasks)
        notes.append(f"Data of {where}: {text}.")
    return notes


def _evaluation_notes(shown: pd.DataFrame) -> list[str]:
    """Tasks in which one row's best score was picked from more evaluations than another's."""
    alike: dict[str, list[str]] = {}
    counts = shown.reindex(columns=["task", "label", "evaluations"]).dropna().drop_duplicates()
    for task, group in counts.groupby("task", sort=False):
        parts = [
            f"{number:.0f} ({' / '.join(part['label'])})"
            for number, part in group.groupby("evaluations")
        ]
        if len(parts) > 1:
            alike.setdefault(", ".join(parts), []).append(str(task))
    return [
        f"{', '.join(tasks)}: the best score is of a different number of evaluations: "
        f"{parts}; more of them favour a row."
        for parts, tasks in alike.items()
    ]


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

    SoRA's gates move until the last step, AdaLoRA's budget is reached at steps - tfinal, LoRA2's
    there if deltaT divides it, else a step later.
    """
    if settings.get("method.xi") or settings.get("method.xi_max"):
        return steps
    target = settings.get("method.target_r")
    start = settings.get("method.init_r", settings.get("method.r"))
    if target is None or target == start:
        return 0.0
    frozen = steps - settings["method.tfinal"]
    late = settings.get("method.k") is not None and frozen % settings.get("method.deltaT", 1)
    return frozen + bool(late)


def _row_notes(plan: Plan, table: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    notes = []
    for row in plan.rows:
        for task, found in table[row.label].items():
            if found.ambiguous:
                notes.append(
                    f"{row.label}, {task}: {found.ambiguous} seed(s) have several runs and are "
                    f"not averaged ({', '.join(found.repeated)}): remove those out of date."
                )
        average = printed(plan, row).get((AVERAGE, AVERAGE), math.nan)
        recomputed = paper_average(plan, row)
        whole = len(plan.tasks) == len({task for task, _ in printed(plan, row)} - {AVERAGE})
        if whole and abs(average - recomputed) > 0.0051:
            notes.append(
                f"{row.label}: the paper prints an average of {average:.2f}, its cells give "
                f"{as_printed(recomputed)}, which is used here."
            )
    return notes
