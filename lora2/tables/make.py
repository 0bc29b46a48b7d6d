"""From a table's plan to the tables and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.config.load import Resolved, as_tree
from lora2.records import store
from lora2.sweep.presets import Profile
from lora2.sweep.table import Job, Table, jobs, load_table
from lora2.tables import build as tables
from lora2.tables import figure3 as figures
from lora2.tables import plan as report_plan
from lora2.tables import render
from lora2.tables.compare import compare
from lora2.tables.notes import flags

# Where something lies, and how a batch is split, is no part of what was run.
PLACES = ("seed", "results.dir", "data.dir", "data.source", "backbone.path", "backbone.revision",
          "train.micro_batch_size", "train.eval_batch_size", "train.save_steps")  # fmt: skip
# Whole tables of their own, with files of their own: table1-equal.md.
VARIANTS = ("protocol", "ranks")


def report_table(
    plan: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None = None,
    extra: Sequence[str] = (),
    runs: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a table (or Figure 3) from the runs in ``folder``; return the files written.

    A cell's runs are those whose settings are the plan's (with ``extra`` words), whatever their
    seed and machine. ``seeds`` None takes the profile's and whatever others are found.

    Raises:
        StoreError: there are no runs of this table.
        FileNotFoundError: the figure's runs are known but their folders are not here.
    """
    runs = store.collect(folder) if runs is None else runs
    shown, chosen = _match(plan, profile, folder, seeds, extra, runs)
    if plan.kind == "figure":
        return _figure(shown, profile, folder, chosen)
    return render.write(shown, runs, folder, profile.name)


def print_table(
    plan: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None = None,
    extra: Sequence[str] = (),
) -> str:
    """Return what ``report_table`` would write as Markdown, for a part or a variant of a table.

    Raises:
        StoreError: there are no runs of this table.
    """
    runs = store.collect(folder)
    shown, _ = _match(plan, profile, folder, seeds, extra, runs)
    cells, notes = tables.build(shown, runs), flags(shown, runs)
    return render.markdown(shown, cells, notes, profile.name, compare(shown, runs, folder))


def report_cells(
    plan: Table,
    cells: Sequence[Job],
    profile: Profile,
    folder: Path,
    seeds: Sequence[int],
    runs: pd.DataFrame,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write a table whose cells were resolved one by one; ``notes`` are said under it.

    Raises:
        StoreError: there are no runs of this table.
        FileNotFoundError: the figure's runs are known but their folders are not here.
    """
    shown, chosen = _shown(plan, cells, folder, seeds, runs)
    shown = dataclasses.replace(shown, notes=list(notes))
    if plan.kind == "figure":
        return _figure(shown, profile, folder, chosen)
    return render.write(shown, runs, folder, profile.name)


def matching(cells: Sequence[Job], runs: pd.DataFrame) -> dict[str, str]:
    """Return, by the name of each of ``cells``, the run with its settings and seed.

    The run of that very name where there is one, else the last that ran the same elsewhere: its
    data or encoder lay in another folder. Cells that were not run are left out.
    """
    own = set(runs["run"])
    settings = [comparable(flat) for flat in store.settings(runs)]
    same = list(zip(runs["run"], runs["seed"].astype(int), settings, strict=True))
    found = {}
    for job in cells:
        wanted, seed = comparable(_flat(job.resolved)), job.resolved.config.seed
        others = [name for name, other, one in same if other == seed and one == wanted]
        if job.name in own or others:
            found[job.name] = job.name if job.name in own else others[-1]
    return found


def is_official(plan: Table, extra: Sequence[str]) -> bool:
    """Tell whether this is a whole table, wherever its data lies: only that is written."""
    known = (*PLACES, *VARIANTS)
    return plan == load_table(plan.name) and all(w.partition("=")[0] in known for w in extra)


def _value(word: str) -> str:
    return word.partition("=")[2]


def _match(
    plan: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None,
    extra: Sequence[str],
    runs: pd.DataFrame,
) -> tuple[report_plan.Plan, pd.DataFrame]:
    """Return the plan that the tables read and all the runs in it."""
    shown, chosen = _shown(plan, jobs(plan, profile, None, extra), folder, seeds, runs)
    suffix = "".join(f"-{_value(w)}" for w in extra if w.partition("=")[0] in VARIANTS)
    shown = dataclasses.replace(shown, suffix=suffix)
    if seeds is None and profile.seeds is not None:
        found = {int(seed) for seed in chosen["seed"]}
        shown = dataclasses.replace(shown, seeds=sorted(found | set(profile.seeds)))
    return shown, chosen


def _shown(
    plan: Table,
    cells: Sequence[Job],
    folder: Path,
    seeds: Sequence[int] | None,
    runs: pd.DataFrame,
) -> tuple[report_plan.Plan, pd.DataFrame]:
    first = cells[0].resolved.config
    conditions = {"protocol": first.protocol, "ranks": first.ranks}
    shown = as_report_plan(plan, cells, runs, seeds)
    shown = dataclasses.replace(shown, conditions=conditions)
    chosen = pd.concat([report_plan.select(runs, row) for row in shown.rows])
    chosen = chosen.loc[chosen["task"].isin(plan.tasks)]
    if chosen.empty:
        raise store.StoreError(f"{folder} has no runs of table {plan.name}")
    return shown, chosen


def as_report_plan(
    plan: Table, cells: Sequence[Job], runs: pd.DataFrame, seeds: Sequence[int] | None
) -> report_plan.Plan:
    """Return the plan that the tables read, each row with the names of its runs."""
    settings = [comparable(flat) for flat in store.settings(runs)]
    names = runs["run"].tolist()
    labels = {row.id: row.label for row in plan.rows}
    rows = []
    for row in plan.rows:
        wanted = [comparable(_flat(job.resolved)) for job in cells if job.row == row.id]
        chosen = [name for name, one in zip(names, settings, strict=True) if one in wanted]
        rows.append(
            report_plan.Row(
                label=row.label,
                method=row.method,
                runs=chosen,
                paper_row=row.paper_row,
                ours=row.ours,
                against=labels.get(row.against or ""),  # None too where that row was left out
            )
        )
    return report_plan.Plan(
        table=plan.table,
        rows=rows,
        tasks=list(plan.tasks),
        seeds=seeds,
        metrics=plan.metrics,
        title=plan.title,
    )


def _flat(resolved: Resolved) -> dict[str, object]:
    return store.flatten(as_tree(resolved.config))


def comparable(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings that decide a run's result, its seed apart: not where things lie."""
    return {k: v for k, v in settings.items() if k not in PLACES and v is not None}


def _figure(
    plan: report_plan.Plan, profile: Profile, folder: Path, chosen: pd.DataFrame
) -> list[Path]:
    if plan.seeds is not None:
        chosen = chosen.loc[chosen["seed"].isin(list(plan.seeds))]
    names = {task: render.TASK_NAMES[task] for task in plan.tasks}
    panels = figures.read_panels(folder, chosen, names)
    if not panels:
        raise store.StoreError(f"no finished runs for {plan.title} in {folder}")
    return list(figures.write(panels, folder / str(plan.table), profile.note))
