"""Make the tables and Figure 3 from the runs in a results folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.config.schema import as_tree
from lora2.records import store
from lora2.sweep.table import PLACES, Job, Profile, Table, jobs, load_table
from lora2.tables import figure3, render
from lora2.tables.build import TableResults, fill

# Words that make another whole table, with files of its own: table1-equal.md.
VARIANTS = ("protocol", "ranks")


def report_table(
    table: Table, profile: Profile, folder: Path, seeds: Sequence[int] | None = None,
    extra: Sequence[str] = (), runs: pd.DataFrame | None = None,
) -> list[Path]:  # fmt: skip
    """Write a table (or Figure 3) from the runs in ``folder``; return the files written.

    A cell's runs are those with the table's settings (and ``extra`` words), from any machine.
    ``seeds`` None takes the profile's seeds and any others that were run. A StoreError if there are
    no runs, a FileNotFoundError if the folders of the figure's runs are not here.
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
    table: Table, profile: Profile, folder: Path,
    seeds: Sequence[int] | None, extra: Sequence[str], runs: pd.DataFrame,
) -> str:  # fmt: skip
    """Return the Markdown of a table, or of a part or variant of it, as ``report_table``."""
    results = find_results(table, profile, folder, seeds, extra, runs)
    return render.texts(results, folder, profile)[".md"]


def find_results(
    table: Table, profile: Profile, folder: Path,
    seeds: Sequence[int] | None, extra: Sequence[str], runs: pd.DataFrame,
) -> TableResults:  # fmt: skip
    """Return the table with the runs that have its settings; StoreError if there are none."""
    cells = jobs(table, profile, None, extra)
    run_settings = [comparable(settings) for settings in store.settings(runs)]
    runs_of = {}
    for row in table.rows:
        wanted = [_comparable_job(job) for job in cells if job.row == row.id]
        runs_of[row.id] = runs.loc[[settings in wanted for settings in run_settings]]
    run_seeds = {int(seed) for row in runs_of.values() for seed in row["seed"]}
    if not run_seeds:
        raise store.StoreError(f"{folder} has no runs of table {table.name}")
    if seeds is None and profile.seeds is not None:
        seeds = sorted(run_seeds | set(profile.seeds))
    config = cells[0].resolved.config
    conditions = {"protocol": config.protocol, "ranks": config.ranks}
    typed = [word.partition("=") for word in extra]
    suffix = "".join(f"-{value}" for key, _, value in typed if key in VARIANTS)
    return fill(table, runs_of, seeds, conditions, suffix)


def matching(cells: Sequence[Job], runs: pd.DataFrame) -> dict[str, str]:
    """Return, by the name of each job in ``cells`` that was run, its run.

    That is the run of the same name, otherwise the last with the same settings and seed, whose data
    or encoder were in another folder.
    """
    names = set(runs["run"])
    settings = [comparable(flat) for flat in store.settings(runs)]
    recorded = list(zip(runs["run"], runs["seed"].astype(int), settings, strict=True))
    matched = {}
    for job in cells:
        wanted = (job.resolved.config.seed, _comparable_job(job))
        same = [name for name, *values in recorded if tuple(values) == wanted]
        if job.name in names or same:
            matched[job.name] = job.name if job.name in names else same[-1]
    return matched


def comparable(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings that decide a run's result, without its seed and without folders."""
    kept = {k: v for k, v in settings.items() if k not in PLACES and v is not None}
    if store.WARM_START in kept:
        kept[store.WARM_START] = Path(str(kept[store.WARM_START])).name
    return kept


def _comparable_job(job: Job) -> dict[str, object]:
    return comparable(store.flatten(as_tree(job.resolved.config)))


def is_official(table: Table, extra: Sequence[str]) -> bool:
    """Tell whether this is a whole table with its own settings, which alone is written to files."""
    keys = {word.partition("=")[0] for word in extra}
    return table == load_table(table.name) and keys <= {*PLACES, *VARIANTS}
