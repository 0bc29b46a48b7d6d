"""From the runs in a results folder to the tables and Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.config.load import Resolved, as_tree
from lora2.records import store
from lora2.sweep.presets import Profile
from lora2.sweep.table import PLACES, Job, Table, jobs, load_table
from lora2.tables import figure3, render
from lora2.tables.build import TableResults, fill

# Whole tables of their own, with files of their own: table1-equal.md.
VARIANTS = ("protocol", "ranks")


def report_table(
    table: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None = None,
    extra: Sequence[str] = (),
    runs: pd.DataFrame | None = None,
) -> list[Path]:
    """Write a table (or Figure 3) from the runs in ``folder``; return the files written.

    A cell's runs are those whose settings are the table's (with ``extra`` words), whatever their
    seed and machine. ``seeds`` None takes the profile's and whatever others were run.

    Raises:
        StoreError: there are no runs of this table.
        FileNotFoundError: the figure's runs are in runs.csv but their folders are not here.
    """
    runs = store.collect(folder) if runs is None else runs
    results = find_results(table, profile, folder, seeds, extra, runs)
    if table.kind != "figure":
        texts = render.texts(results, folder, profile)
        return render.write_files(folder, table.stem + results.suffix, texts)
    finished = results.used().groupby("task")["run"].unique()
    panels = {render.TASK_NAMES[task]: figure3.read_ranks(folder, finished[task])
              for task in table.tasks if task in finished}  # fmt: skip
    if not panels:
        raise store.StoreError(f"no finished runs for {table.title} in {folder}")
    return list(figure3.write(panels, folder / table.stem, profile.note))


def print_table(
    table: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None = None,
    extra: Sequence[str] = (),
) -> str:
    """Return what ``report_table`` would write as Markdown, for a part or a variant of a table.

    Raises:
        StoreError: there are no runs of this table.
    """
    results = find_results(table, profile, folder, seeds, extra, store.collect(folder))
    return render.texts(results, folder, profile)[".md"]


def find_results(
    table: Table,
    profile: Profile,
    folder: Path,
    seeds: Sequence[int] | None,
    extra: Sequence[str],
    runs: pd.DataFrame,
) -> TableResults:
    """Return the table with the runs that have its settings.

    Raises:
        StoreError: there are none.
    """
    cells = jobs(table, profile, None, extra)
    tried = [comparable(settings) for settings in store.settings(runs)]
    runs_of = {}
    for row in table.rows:
        wanted = [comparable(_flat(job.resolved)) for job in cells if job.row == row.id]
        runs_of[row.id] = runs.loc[[settings in wanted for settings in tried]]
    run_seeds = {int(seed) for row in runs_of.values() for seed in row["seed"]}
    if not run_seeds:
        raise store.StoreError(f"{folder} has no runs of table {table.name}")
    if seeds is None and profile.seeds is not None:
        seeds = sorted(run_seeds | set(profile.seeds))
    config = cells[0].resolved.config
    conditions = {"protocol": config.protocol, "ranks": config.ranks}
    suffix = "".join(
        f"-{value}" for key, _, value in (word.partition("=") for word in extra) if key in VARIANTS
    )
    return fill(table, runs_of, seeds, conditions, suffix)


def matching(cells: Sequence[Job], runs: pd.DataFrame) -> dict[str, str]:
    """Return, by the name of each of ``cells``, the run with its settings and seed.

    The run of that very name where there is one, else the last that ran the same elsewhere: its
    data or encoder lay in another folder. Cells that were not run are left out.
    """
    names = set(runs["run"])
    settings = [comparable(flat) for flat in store.settings(runs)]
    tried = list(zip(runs["run"], runs["seed"].astype(int), settings, strict=True))
    matched = {}
    for job in cells:
        wanted, seed = comparable(_flat(job.resolved)), job.resolved.config.seed
        same = [job.name] * (job.name in names)
        same = same or [run for run, other, run_settings in tried
                        if other == seed and run_settings == wanted]  # fmt: skip
        if same:
            matched[job.name] = same[-1]
    return matched


def comparable(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings that decide a run's result, its seed apart: not where things lie."""
    kept = {k: v for k, v in settings.items() if k not in PLACES and v is not None}
    if store.WARM_START in kept:
        kept[store.WARM_START] = Path(str(kept[store.WARM_START])).name
    return kept


def _flat(resolved: Resolved) -> dict[str, object]:
    return store.flatten(as_tree(resolved.config))


def is_official(table: Table, extra: Sequence[str]) -> bool:
    """Tell whether this is a whole table, wherever its data lies: only that is written."""
    allowed = (*PLACES, *VARIANTS)
    return table == load_table(table.name) and all(
        word.partition("=")[0] in allowed for word in extra
    )
