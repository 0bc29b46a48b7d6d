"""Choose the learning rate of every row of a study, and write the CSVs of its results folder.

runs.csv and selection/runs.csv: every run. rates.csv: every rate tried. scores.csv: every final
run. curves.csv: its evaluations. predictions.parquet: its last predictions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lora2.records import store
from lora2.records.files import replacing
from lora2.study.spec import Part, Study
from lora2.sweep.table import Job
from lora2.tables.build import matching

FACTOR = 2.0  # between two neighbouring rates
MOST = 9  # rates tried for one row at one budget
SETTLED = ("finished", "diverged")  # a rate that diverged cannot be chosen: that is a result
COLUMNS = ["part", "row", "task", "steps", "learning_rate", "seed", "run", "status",
           "score_best", "score_last", "chosen"]  # fmt: skip
SCORES = ["part", "row", "task", "steps", "seed", "learning_rate", "run", "score_best", "step_best",
          "score_last", "params_adapter", "params_kept", "train_seconds"]  # fmt: skip
CURVES = ["part", "row", "seed", "run", "step", "score", "train_loss", "eval_loss"]
Run = Callable[[Sequence[Job]], int]  # run the unfinished jobs; 0 if all are settled


class SelectionError(RuntimeError):
    """No rate can be chosen; the message says why and what to type."""


class Choice(NamedTuple):
    """The rate chosen for one row of one part, and all that were tried."""

    part: Part
    row: str
    rate: float
    tried: pd.DataFrame  # one line per rate, as in rates.csv


def select(
    study: Study, part: Part, rows: Sequence[str], folder: Path, extra: Sequence[str], run: Run
) -> list[Choice]:
    """Choose a rate for each of ``rows`` by the last held-out score.

    While a row's best rate is at an end of its grid, that is extended by a factor of 2 on that
    side, up to ``MOST`` rates. Of equal scores the middle rate is chosen: the grid of a row that
    learns at no rate does not grow.
    """
    grids = {row: first_grid(study.rates[row]) for row in rows}
    while True:
        tried = {row: {rate: study.candidate(part, row, rate, extra) for rate in grid}
                 for row, grid in grids.items()}  # fmt: skip
        if run([job for jobs in tried.values() for job in jobs.values()]):
            raise SelectionError(
                f"part {part.name}: some selection runs failed or are missing; repeat the command, "
                f"without only="
            )
        runs = recorded(folder)
        frames = {row: _scores(study, part, row, jobs, runs) for row, jobs in tried.items()}
        wider = {row: _wider(frame) for row, frame in frames.items()}
        if not any(wider.values()):
            return [Choice(part, row, _chosen(frame), frame) for row, frame in frames.items()]
        for row, more in wider.items():
            if more and len(grids[row]) == MOST:
                raise SelectionError(
                    f"part {part.name}: of {MOST} rates from {grids[row][0]:g} to "
                    f"{grids[row][-1]:g} the best for {row} is still at an end of the grid: set "
                    f"another rate for it in configs/study/{study.name}.yaml"
                )
            grids[row] = sorted({*grids[row], *more})


def first_grid(middle: float) -> list[float]:
    return [middle / FACTOR, middle, middle * FACTOR]


def recorded(folder: Path) -> pd.DataFrame:
    """Return the settled runs of a results folder, including those in its runs.csv."""
    try:
        runs = store.read(folder)
    except store.NoRuns:
        return pd.DataFrame({"run": [], "seed": [], "config": [], "status": []})
    return runs.loc[runs["status"].isin(SETTLED)]


def left(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Return the jobs that are neither in a run folder nor in runs.csv, each once."""
    done = matching(jobs, recorded(folder))
    return list({job.name: job for job in jobs if job.name not in done}.values())


def _scores(
    study: Study, part: Part, row: str, jobs: Mapping[float, Job], runs: pd.DataFrame
) -> pd.DataFrame:
    """Return a line for each rate tried; ``chosen`` marks the best."""
    names, by_name = matching(list(jobs.values()), runs), runs.set_index("run")
    lines = []
    for rate, job in jobs.items():
        values = by_name.loc[names[job.name]]
        result = {key: values.get(key) for key in ("status", "score_best", "score_last")}
        lines.append(
            {"part": part.name, "row": row, "task": part.task, "steps": part.steps,
             "learning_rate": rate, "seed": study.selection_seed, "run": names[job.name], **result}
        )  # fmt: skip
    frame = pd.DataFrame(lines)
    finished = frame.loc[frame["status"] == "finished"].sort_values("learning_rate")
    if finished.empty:
        raise SelectionError(
            f"part {part.name}: every rate of {row} diverged: set a lower one in "
            f"configs/study/{study.name}.yaml"
        )
    scores = finished["score_last"].astype(float)
    best = finished.index[scores == scores.max()]
    return frame.assign(chosen=frame.index == best[(len(best) - 1) // 2])[COLUMNS]


def _chosen(frame: pd.DataFrame) -> float:
    return float(frame.loc[frame["chosen"], "learning_rate"].iloc[0])


def _wider(frame: pd.DataFrame) -> list[float]:
    """Return the next rate beyond the grid if the chosen one is at its end."""
    rates, chosen = frame["learning_rate"], _chosen(frame)
    ends = {chosen / FACTOR: rates.min(), chosen * FACTOR: rates.max()}
    return [rate for rate, end in ends.items() if chosen == end]


def sentences(choices: Sequence[Choice]) -> Iterator[str]:
    """Yield a line for each choice: the rate, and the score of each rate tried."""
    for choice in choices:
        tried = ", ".join(
            f"{line.learning_rate:g}: "
            + (f"{line.score_last:.1f}" if line.status == "finished" else line.status)
            for line in choice.tried.itertuples()
        )
        name = f"  {choice.part.name}, {choice.row}"
        yield f"{name}: {choice.rate:g} (last held-out scores: {tried})"


def collect(study: Study, choices: Sequence[Choice], folder: Path, extra: Sequence[str]) -> None:
    """Write the CSVs of the parts in ``choices``, all seeds; lines of other parts are kept."""
    store.collect(folder / "selection")
    with contextlib.suppress(store.NoRuns):  # before the first final run
        store.collect(folder)
    runs, seeds = recorded(folder), {part.name: part.seeds for part in study.parts}
    parts = {choice.part.name: choice.part for choice in choices}  # maybe narrowed to some seeds
    whole = [dataclasses.replace(part, seeds=seeds[name]) for name, part in parts.items()]
    scores = pd.concat([_finals(study, part, choices, runs, extra) for part in whole])
    _update(folder / "rates.csv", [choice.tried for choice in choices], ["part", "row"])
    every = _update(folder / "scores.csv", [scores], ["part", "row"])
    empty = pd.DataFrame(columns=CURVES)
    curves = [_curve(folder, line) for line in scores.to_dict("records")]
    _update(folder / "curves.csv", [*curves, empty], ["part", "run"])
    _write_predictions(folder, every["run"].unique())


def read(folder: Path, name: str) -> pd.DataFrame:
    """Return one of the CSVs; StoreError if it is missing."""
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise store.StoreError(f"{path} is missing: run the study, or name its results folder")
    return pd.read_csv(path)


def _finals(
    study: Study, part: Part, choices: Sequence[Choice], runs: pd.DataFrame, extra: Sequence[str]
) -> pd.DataFrame:
    """Return a line for every finished final run of a part."""
    rates = {choice.row: choice.rate for choice in choices if choice.part.name == part.name}
    finished = runs.loc[runs["status"] == "finished"]
    by_name = finished.set_index("run")
    lines = []
    for row in part.rows:
        rate = rates[study.source(row)]
        jobs = {seed: study.job(part, row, rate, seed, extra) for seed in part.seeds}
        names = matching(list(jobs.values()), finished)
        for seed, job in jobs.items():
            if name := names.get(job.name):
                planned = {"part": part.name, "row": row, "task": part.task, "steps": part.steps,
                           "seed": seed, "learning_rate": rate, "run": name}  # fmt: skip
                lines.append({**by_name.loc[name].to_dict(), **planned})
    return pd.DataFrame(lines, columns=SCORES)


def _update(path: Path, fresh: Sequence[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Replace the lines of the file whose ``keys`` are in ``fresh``; return all its lines."""
    frame = pd.concat(fresh)
    with replacing(path) as file:
        if path.is_file():
            old = read(path.parent, path.stem)
            replaced = set(map(tuple, frame[keys].to_numpy()))
            others = old.loc[[tuple(key) not in replaced for key in old[keys].to_numpy()]]
            frame = pd.concat([part for part in (others, frame) if len(part)] or [frame])
        frame = frame.sort_values(keys, kind="stable")
        file.write(frame.to_csv(index=False, lineterminator="\n").encode())
    return frame


def _curve(folder: Path, line: dict) -> pd.DataFrame:
    """Return the evaluations of a run; an empty frame without its folder."""
    path = folder / "runs" / line["run"] / store.HISTORY
    if not path.is_file():
        return pd.DataFrame(columns=CURVES)
    frame = pd.read_csv(path)
    where = {key: line[key] for key in ("part", "row", "seed", "run")}
    return frame.assign(**where).reindex(columns=CURVES)


def _write_predictions(folder: Path, runs: Sequence[str]) -> None:
    """Write predictions.parquet: run and its last predictions, int8 classes or float32 scores."""
    path, kept = folder / "predictions.parquet", {}
    with replacing(path) as file:
        if path.is_file():
            frame = pd.read_parquet(path)
            kept = dict(zip(frame["run"], frame["last"], strict=True))
        for run in runs:
            source = folder / "runs" / run / "predictions.parquet"
            if source.is_file():
                last = pd.read_parquet(source, columns=["last"])["last"].to_numpy()
                classes = bool((last == np.round(last)).all())
                kept[run] = last.astype(np.int8 if classes else np.float32)
        values = [last.tolist() for last in kept.values()]
        frame = pd.DataFrame({"run": list(kept), "last": values})
        file.write(frame.to_parquet(None, index=False, compression="zstd"))
