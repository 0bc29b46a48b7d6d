"""Find the runs of a table's cells, average them, and compare them with the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lora2.config.schema import as_tree
from lora2.paper.numbers import AVERAGE, exact, glue_average, printed_values, rounded
from lora2.records import store
from lora2.sweep.table import PLACES, Job, Profile, Row, Table, jobs
from lora2.tables import stats

LOST = ("failed", "diverged", "ambiguous", "missing")
SIZES = ["params_adapter", "params_kept", "params_head", "params_encoder"]


class Cell(NamedTuple):
    """The runs of one row and task."""

    finished: pd.DataFrame  # indexed by seed
    lost: Mapping[str, int]  # the number of others, by LOST
    repeated: tuple[str, ...]  # the runs of ambiguous seeds: those with several runs

    def counts(self) -> dict[str, int]:
        return {"planned": len(self.finished) + sum(self.lost.values()), **self.lost}


class TableResults(NamedTuple):
    table: Table
    cells: Mapping[str, Mapping[str, Cell]]  # by row id and task
    seeds: Sequence[int] | None  # None accepts any seed
    conditions: Mapping[str, str]  # shown in the heading

    def used(self) -> pd.DataFrame:
        """Return the averaged runs of all cells; a run in several rows once per row ("label")."""
        return pd.concat(
            cell.finished.reset_index().assign(label=row.label)
            for row in self.table.rows
            for cell in self.cells[row.id].values()
        )


def find_results(
    table: Table, profile: Profile, folder: Path,
    seeds: Sequence[int] | None, extra: Sequence[str], runs: pd.DataFrame,
) -> TableResults:  # fmt: skip
    """Return the table with the runs that have its settings and ``extra`` words, on any machine.

    ``seeds`` None takes the profile's seeds and any others that were run. A StoreError if there are
    no runs.
    """
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
    return fill(table, runs_of, seeds, conditions)


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


def fill(
    table: Table, runs_of: Mapping[str, pd.DataFrame], seeds: Sequence[int] | None = None,
    conditions: Mapping[str, str] | None = None,
) -> TableResults:  # fmt: skip
    """Sort the runs of each row (``runs_of``, by row id) into cells by task."""
    cells = {row.id: {task: _cell(table, task, runs_of[row.id], seeds) for task in table.tasks}
             for row in table.rows}  # fmt: skip
    return TableResults(table, cells, seeds, conditions or {})


def _cell(table: Table, task: str, runs: pd.DataFrame, seeds: Sequence[int] | None) -> Cell:
    """Return a cell; a finished run without one of the task's metrics counts as failed."""
    runs = runs.loc[runs["task"] == task]
    if seeds is not None:
        runs = runs.loc[runs["seed"].isin(list(seeds))]
    ambiguous = runs["seed"].duplicated(keep=False)
    repeated, single = runs.loc[ambiguous], runs.loc[~ambiguous]
    columns = [f"{which}_{m}" for which in ("best", "last") for m in table.metrics_of(task)]
    scored = single.reindex(columns=columns).notna().all(axis=1)
    finished = single.loc[(single["status"] == "finished") & scored]
    diverged = int((single["status"] == "diverged").sum())
    missing = 0 if seeds is None else len(set(seeds)) - runs["seed"].nunique()
    lost = (len(single) - len(finished) - diverged, diverged, repeated["seed"].nunique(), missing)
    counts = dict(zip(LOST, map(int, lost), strict=True))
    return Cell(finished.set_index("seed").sort_index(), counts, tuple(repeated["run"]))


def build(results: TableResults) -> pd.DataFrame:
    """Return the long form of a table: one line per row, task and metric, and one per average.

    Scores are in percent, over seeds at the best evaluation of each run, or after its last step
    (``last_*``); ``difference`` is ours minus the paper's; of the ``planned`` runs n are averaged.
    """
    table, lines = results.table, []
    for row in table.rows:
        cells = results.cells[row.id]
        used = pd.concat([cell.finished for cell in cells.values()])
        identity = {"table": table.table, "label": row.label, "method": row.method,
                    "ours": row.ours}  # fmt: skip
        sizes = used.reindex(columns=SIZES).astype(float).mean().to_dict()
        records = [r for task in table.tasks for r in _task_records(table, row, cells[task], task)]
        if not any(cell.finished.empty for cell in cells.values()):
            records.append(_average_record(table, row, cells))
        lines += [{**identity, **record, **sizes} for record in records]
    return pd.DataFrame(lines)


def _task_records(table: Table, row: Row, cell: Cell, task: str) -> list[dict]:
    best, last = (_scores(table, cell, task, which) for which in ("best", "last"))
    paper, seeds = printed(table, row), " ".join(str(seed) for seed in best.index)
    return [
        {"task": task, "metric": metric, "seeds": seeds,
         **_record(best[metric].tolist(), last[metric].tolist(),
                   paper.get((task, metric), math.nan)),
         **cell.counts()}
        for metric in table.metrics_of(task)
    ]  # fmt: skip


def _scores(table: Table, cell: Cell, task: str, which: str) -> pd.DataFrame:
    """Return the scores of a cell in percent, seeds x metrics."""
    columns = {f"{which}_{metric}": metric for metric in table.metrics_of(task)}
    scores = cell.finished.reindex(columns=list(columns)).rename(columns=columns)
    return 100.0 * scores.astype(float)


def _record(best: list[float], last: list[float], paper: float) -> dict[str, float]:
    """Return the numbers of a cell, none of whose scores is NaN."""
    shown, final = stats.summary(best), stats.summary(last)
    return {
        **{("ci_" + k if k in ("low", "high") else k): v for k, v in shown._asdict().items()},
        "last_mean": final.mean,
        "last_std": final.std,
        "paper": paper,
        "difference": shown.mean - paper,
    }


def _average_record(table: Table, row: Row, cells: Mapping[str, Cell]) -> dict:
    """Average over the tasks by the paper's rule: per seed, or, if seeds differ, of the means."""
    best, last = (_averages(table, cells, which) for which in ("best", "last"))
    sizes = [len(cell.finished) for cell in cells.values()]
    seeds = next(iter(cells.values())).finished.index
    same_seeds = all(cell.finished.index.equals(seeds) for cell in cells.values())
    counts = pd.DataFrame([cell.counts() for cell in cells.values()])
    return {
        "task": AVERAGE, "metric": AVERAGE,
        "seeds": " ".join(str(seed) for seed in seeds) if same_seeds else "",
        **_record(best, last, paper_average(table, row)),
        "n": min(sizes), **counts.sum().to_dict(), "planned": int(counts["planned"].max()),
    }  # fmt: skip


def _averages(table: Table, cells: Mapping[str, Cell], which: str) -> list[float]:
    scores = {task: _scores(table, cell, task, which) for task, cell in cells.items()}
    # seeds x tasks, NaN where a task lacks a seed
    means = pd.DataFrame({t: frame.mean(axis=1, skipna=False) for t, frame in scores.items()})
    same_seeds = means.notna().all(axis=None)
    return means.mean(axis=1).tolist() if same_seeds else [means.mean().mean()]


def printed(table: Table, row: Row) -> Mapping[tuple[str, str], float]:
    """Return the paper's numbers of a row by task and metric; empty if it has no such row."""
    return printed_values(table.table, row.paper_row) if row.paper_row else {}


def paper_average(table: Table, row: Row) -> float:
    """Return the paper's average over the tasks, recomputed; NaN if a cell is not printed."""
    paper = printed(table, row)
    keys = [(task, metric) for task in table.tasks for metric in table.metrics_of(task)]
    if not all(key in paper for key in keys):
        return math.nan
    return glue_average({key: paper[key] for key in keys}, table.tasks)


def as_printed(average: float) -> str:
    """Round a mean of printed numbers to two decimals, ties away from zero: 84.475 -> "84.48"."""
    return rounded(exact(round(average, 6)))
