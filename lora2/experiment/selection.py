"""Which learning rate each method takes, from runs scored on rows held out of train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.experiment.reporting import matching
from lora2.experiment.study import Study
from lora2.experiment.studyruns import Candidate, Group
from lora2.report import store

COLUMNS = ["study", "method", "row", "task", "learning_rate", "seed", "run", "status", "holdout",
           "steps", "step_best", "score_best", "score_last", "sum", "chosen"]  # fmt: skip
FAILED = ("failed", "missing")


class SelectionError(RuntimeError):
    """No rate can be chosen yet; the message says which runs are in the way and what to type."""


def scored(study: Study, found: Sequence[Candidate], runs: pd.DataFrame | None) -> pd.DataFrame:
    """Return one line per candidate run, with the sum of its group's best scores and the choice.

    ``sum`` adds the best holdout scores (percent points) of all runs at one rate that choose for
    one group; NaN where one of them is not finished. The largest is chosen, of equal ones the
    smallest rate. ``runs`` None: nothing was run.
    """
    names = {} if runs is None else matching([one.job for one in found], runs)
    rows = {} if runs is None else runs.set_index("run").to_dict("index")
    lines = [_line(study, one, names.get(one.job.name), rows) for one in found]
    frame = pd.DataFrame(lines, columns=[c for c in COLUMNS if c not in ("sum", "chosen")])
    key = pd.Series([" ".join(one.group) for one in found], index=frame.index)
    best = frame["score_best"].where(frame["status"] == "finished")
    # skipna would let a rate that diverged on one task win by its other tasks.
    frame["sum"] = best.groupby([key, frame["learning_rate"]]).transform(
        lambda part: part.sum(skipna=False)
    )
    order = frame.sort_values(["sum", "learning_rate"], ascending=[False, True], kind="stable")
    winner = order.dropna(subset="sum").groupby(key)["learning_rate"].first()
    frame["chosen"] = frame["learning_rate"] == key.map(winner)
    return frame[COLUMNS]


def _line(study: Study, one: Candidate, run: str | None, rows: dict) -> dict:
    config, row = one.job.resolved.config, rows.get(run, {})
    return {
        "study": study.name,
        "method": one.method,
        "row": one.job.row,
        "task": one.job.task,
        "learning_rate": one.rate,
        "seed": config.seed,
        "run": run or one.job.name,
        "status": row.get("status", "missing"),
        "holdout": config.data.holdout,
        "steps": one.job.resolved.steps,
        **{name: row.get(name, math.nan) for name in ("step_best", "score_best", "score_last")},
    }


def choose(
    study: Study, found: Sequence[Candidate], folder: Path, *, write: bool = True
) -> dict[Group, float]:
    """Return the rate of each group and, with ``write``, put all candidates into rates.csv.

    ``write`` also collects selection/runs.csv, which is chosen from where the folders are not.
    ``folder`` is the study's results folder, the runs lie in its ``selection``. A diverged run
    only takes its rate out of the choice.

    Raises:
        SelectionError: a run is missing or failed, or every rate of a group diverged; rates.csv
            is then as it was.
    """
    try:
        runs = (store.collect if write else store.read)(folder / "selection")
    except store.StoreError:
        runs = None
    frame = scored(study, found, runs)
    lost = frame.loc[frame["status"].isin(FAILED)]
    if len(lost):
        counts = ", ".join(f"{n} {status}" for status, n in lost["status"].value_counts().items())
        raise SelectionError(
            f"no rates are chosen: of {len(frame)} selection runs {counts} "
            f"({', '.join(lost['run'].head(3))}{', ...' if len(lost) > 3 else ''}); "
            "repeat the same command, or only=selection, to have them run"
        )
    groups = [one.group for one in found]
    rates = {
        group: float(rate)
        for group, rate, won in zip(groups, frame["learning_rate"], frame["chosen"], strict=True)
        if won
    }
    none = dict.fromkeys(" ".join(group) for group in groups if group not in rates)
    if none:
        raise SelectionError(
            f"every learning rate of {', '.join(none)} diverged on a run of the selection: put "
            f"lower ones into grid of configs/study/{study.name}.yaml"
        )
    if write:
        text = frame.to_csv(index=False, lineterminator="\n")
        store.write_atomically(folder / "rates.csv", text)
    return rates


def sentence(study: Study, rates: dict[Group, float]) -> str:
    """Return what a reader of a table must know of the choice."""
    rows = ", ".join(f"{study.holdout[task]:,} of {task}" for task in study.tasks)
    chosen = ", ".join(f"{' '.join(group)} {rate:g}" for group, rate in rates.items())
    return (
        f"Learning rates chosen on rows held out of train ({rows}; seed {study.selection_seed}) by "
        f"the best score, summed over what shares a rate; the validation split was not read: "
        f"{chosen}. Every candidate: rates.csv."
    )
