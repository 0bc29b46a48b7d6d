"""Choose the learning rate of every row of a study, by runs scored on held-out training rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from lora2.records import store
from lora2.study.spec import Part, Study
from lora2.sweep.table import Job
from lora2.tables.make import matching

FACTOR = 2.0  # between two neighbouring rates
MOST = 9  # rates tried for one row at one budget
SETTLED = ("finished", "diverged")  # a rate that diverged cannot be chosen: that is a result
COLUMNS = ["part", "row", "task", "steps", "learning_rate", "seed", "run", "status",
           "score_best", "score_last", "chosen"]  # fmt: skip
Run = Callable[[Sequence[Job]], int]  # run the unfinished jobs; 0 if all are settled


class SelectionError(RuntimeError):
    """No rate can be chosen; the message says why and what to type."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rate chosen for one row of one part, and all that were tried."""

    part: Part
    row: str
    rate: float
    tried: pd.DataFrame  # one line per rate, as in rates.csv


def select(
    study: Study, part: Part, rows: Sequence[str], folder: Path, extra: Sequence[str], run: Run
) -> list[Choice]:
    """Choose a rate for each of ``rows`` by the last held-out score.

    A row's grid starts with half, once and twice its rate in the study's file. While its best rate
    is at an end, the grid is extended by a factor of 2 on that side. Of rates with equal scores the
    middle one is chosen, so the grid of a row that learns at no rate does not grow for ever.

    Raises:
        SelectionError: a run failed, or the best of ``MOST`` rates is still at an end.
    """
    grids = {row: first_grid(study.rates[row]) for row in rows}
    while True:
        tried = {
            row: {rate: study.candidate(part, row, rate, extra) for rate in grid}
            for row, grid in grids.items()
        }
        if run([job for jobs in tried.values() for job in jobs.values()]):
            raise SelectionError(
                f"part {part.name}: some selection runs failed or are missing; repeat the command"
            )
        runs = recorded(folder)
        frames = {row: _scores(study, part, row, jobs, runs) for row, jobs in tried.items()}
        wider = {row: _wider(frame) for row, frame in frames.items()}
        if not any(wider.values()):
            return [Choice(part, row, _chosen(frame), frame) for row, frame in frames.items()]
        for row, more in wider.items():
            grids[row] = sorted({*grids[row], *more})
            if len(grids[row]) > MOST:
                raise SelectionError(
                    f"part {part.name}: of {MOST} rates from {grids[row][0]:g} to "
                    f"{grids[row][-1]:g} the best for {row} is still at an end of the grid: set "
                    f"another rate for it in configs/study/{study.name}.yaml"
                )


def first_grid(middle: float) -> list[float]:
    """Return the rates tried first, around the rate in the study's file."""
    return [middle / FACTOR, middle, middle * FACTOR]


def recorded(folder: Path) -> pd.DataFrame:
    """Return the settled runs of a results folder, including those in its runs.csv."""
    try:
        runs = store.read(folder)
    except store.StoreError:
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
        if job.name not in names:
            raise SelectionError(f"the selection run {job.name} is missing; repeat the command")
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
    lower = [chosen / FACTOR] if chosen == rates.min() else []
    return lower + ([chosen * FACTOR] if chosen == rates.max() else [])


def sentences(choices: Sequence[Choice]) -> Iterator[str]:
    """Yield a line for each choice: the rate, and the score of each rate tried."""
    for choice in choices:
        tried = ", ".join(
            f"{line.learning_rate:g}: "
            + (f"{line.score_last:.1f}" if line.status == "finished" else line.status)
            for line in choice.tried.itertuples()
        )
        yield (
            f"  {choice.part.name}, {choice.row}: {choice.rate:g} (last held-out scores: {tried})"
        )
