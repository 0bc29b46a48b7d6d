"""A study's committed CSVs -> one table of its runs, each with its table, row, task and seed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lora2.experiment.reporting import matching
from lora2.experiment.study import Study, load_study
from lora2.experiment.studyruns import Part, Rates, final_parts
from lora2.experiment.tableplan import Job
from lora2.glue.tasks import TASKS
from lora2.report import store
from lora2.report.store import StoreError

WHERE = ["table", "row", "label", "task", "seed"]
ADDED = ["score_first", "constant", "idle", "overlap"]
# What a model that always gives the majority class of GLUE's official validation split is scored,
# counted from its labels; MNLI's two splits have the same majority class.
MAJORITY = {
    "mrpc": {"accuracy": 279 / 408, "f1": 2 * 279 / (279 + 408)},
    "sst2": {"accuracy": 444 / 872},
    "rte": {"accuracy": 146 / 277},
    "qnli": {"accuracy": 2761 / 5463},
    "mnli": {"matched_accuracy": 3479 / 9815, "mismatched_accuracy": 3463 / 9832},
    # A constant answer has no correlation, and no F1 where it is the negative one.
    "cola": {"matthews_correlation": 0.0},
    "stsb": {"pearson": 0.0},
    "qqp": {"f1": 0.0},
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study left in its folder.

    ``runs`` has one line per planned run of each table: ``WHERE``, ``status`` ("missing" where it
    was not run), the columns of runs.csv, ``score_first`` (its first evaluation), ``constant`` (its
    best and its last evaluation gave one class to all), ``idle`` (that, or its best score is at
    most one standard error above the majority class's) and ``overlap`` (the encoder was trained on
    the task's data or on data like it). Scores in percent points.
    """

    name: str  # of the folder: results/<name>
    study: Study
    rates: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    tests: Mapping[str, pd.DataFrame]  # table -> tableN_tests.csv

    @property
    def folder(self) -> str:
        """The folder as a reader of the repository knows it."""
        return f"results/{self.name}"

    @property
    def tables(self) -> list[str]:
        """The tables of scores that have a run, in the study's order."""
        return [t for t in dict.fromkeys(self.runs["table"]) if t != "figure3" and self.has(t)]

    def has(self, table: str) -> bool:
        own = self.runs.loc[self.runs["table"] == table]
        return bool((own["status"] == "finished").any())

    def tasks(self, table: str) -> list[str]:
        return list(dict.fromkeys(self.runs.loc[self.runs["table"] == table, "task"]))

    def rows(self, table: str) -> dict[str, str]:
        """Labels by row id, in the table's order."""
        own = self.runs.loc[self.runs["table"] == table]
        return dict(zip(own["row"], own["label"], strict=True))

    def clean(self, table: str) -> list[str]:
        """Its tasks whose data the encoder was not trained on."""
        own = self.runs.loc[(self.runs["table"] == table) & ~self.runs["overlap"]]
        return list(dict.fromkeys(own["task"]))

    def mark(self, task: str) -> str:
        """What runs.csv says about the data of a task; "" where nothing."""
        own = self.runs.loc[self.runs["task"] == task]
        return "; ".join(dict.fromkeys(one for one in own["data_marks"] if one))

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        done = self.runs.loc[self.runs["status"] == "finished"]
        return {
            key: own.set_index("seed").sort_index()  # type: ignore[misc]
            for key, own in done.groupby(["table", "row", "task"], sort=False)
        }

    def cell(self, table: str, row: str, task: str) -> pd.DataFrame:
        """The finished runs of a cell by seed."""
        found = self._cells.get((table, row, task))
        return self.runs.iloc[:0].set_index("seed") if found is None else found

    def idle(self, table: str, row: str, task: str) -> bool:
        """Whether no seed of a cell rose above the majority class."""
        own = self.cell(table, row, task)
        return len(own) > 0 and bool(own["idle"].all())


def read(folder: Path) -> Results:
    """Read rates.csv, runs.csv, curves.csv and the tests of a study; run folders are not read.

    Raises:
        StoreError: one of the first three is not there, or holds no run of the study.
        ConfigError: configs/study has no such study, or it cannot be read.
    """
    frames = {name: _csv(folder, name) for name in ("rates", "curves")}
    _csv(folder, "runs")
    runs = store.read_csv(folder / "runs.csv")
    study = load_study(str(frames["rates"]["study"].iloc[0]))
    parts = final_parts(study, _rates(study, frames["rates"]))
    lines = _lines(parts, runs, frames["curves"])
    if not (lines["status"] == "finished").any():
        raise StoreError(
            f"{folder}/runs.csv has no finished run of study {study.name}: its settings are not "
            f"those of configs/study/{study.name}.yaml; repeat the study, or restore the file"
        )
    tests = {
        part.plan.name: pd.read_csv(path)
        for part in parts
        if (path := folder / f"table{part.plan.name}_tests.csv").is_file()
    }
    return Results(folder.resolve().name, study, frames["rates"], lines, frames["curves"], tests)


def _csv(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise StoreError(
            f"{path} is not there: run `make study` for this folder, or name the results folder "
            "of a study"
        )
    return pd.read_csv(path, float_precision="round_trip")


def _rates(study: Study, frame: pd.DataFrame) -> Rates:
    chosen = frame.loc[frame["chosen"]]
    return {
        study.group(one["method"], one["row"], one["task"]): float(one["learning_rate"])
        for one in chosen.to_dict("records")
    }


def _lines(parts: list[Part], runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    lines = []
    known = runs.set_index("run", drop=False).to_dict("index")
    ordered = curves.sort_values("step", kind="stable")
    first = ordered.groupby("run")["score"].first().to_dict()
    for part in parts:
        labels = {row.id: row.label for row in part.plan.rows}
        found = matching(part.jobs, runs)
        for job in part.jobs:
            run = known.get(found.get(job.name, ""), {"run": job.name, "status": "missing"})
            where = {"table": part.plan.name, "row": job.row, "label": labels[job.row]}
            lines.append({**run, **where, **_of(job, run), "score_first": first.get(run["run"])})
    frame = pd.DataFrame(lines).reindex(
        columns=list(
            dict.fromkeys([*WHERE, *runs.columns, "score_first", "constant", "idle", "overlap"])
        )
    )
    return frame.assign(data_marks=frame["data_marks"].fillna(""))


def _of(job: Job, run: Mapping[str, object]) -> dict[str, object]:
    return {
        "task": job.task,
        "seed": job.resolved.config.seed,
        "overlap": job.task in (job.resolved.config.backbone.overlap or ()),
        "constant": _constant(job, run),
        "idle": _constant(job, run) or _low(job, run),
    }


def _constant(job: Job, run: Mapping[str, object]) -> bool:
    """Whether best and last evaluation are those of one class for all examples."""
    expected = MAJORITY[job.task]
    if not _official(job, run) and any(expected.values()):
        return False  # other rows, of which the majority class is not known here
    return run["status"] == "finished" and all(
        abs(float(run.get(f"{which}_{metric}", 1.0)) - value) < 1e-9  # type: ignore[arg-type]
        for metric, value in expected.items()
        for which in ("best", "last")
    )


def _low(job: Job, run: Mapping[str, object]) -> bool:
    """Whether the best score is at most one standard error above the majority class's."""
    bound = risen(job.task)
    if run["status"] != "finished" or bound is None or not _official(job, run):
        return False
    return float(run["score_best"]) <= bound  # type: ignore[arg-type]


def _official(job: Job, run: Mapping[str, object]) -> bool:
    embedded = "embedded" in str(run.get("data_marks"))
    return not embedded and job.resolved.config.data.validation is None


def majority(task: str) -> float | None:
    """The score of the majority class for all examples, percent points; None if not known here."""
    values = [MAJORITY[task].get(metric) for metric in TASKS[task].score_metrics]
    known = [value for value in values if value is not None]
    return 100 * sum(known) / len(known) if len(known) == len(values) else None


def risen(task: str) -> float | None:
    """The majority's score and one standard error, above which a run has risen; None: unknown."""
    base = majority(task)
    return None if base is None else base + standard_error(task, base)


def standard_error(task: str, base: float) -> float:
    """That of ``base``, the majority's score, over the official validation rows, percent points.

    Of an accuracy the binomial one; of a correlation that of unrelated answers, 1 / sqrt(n).
    """
    rows = sum(TASKS[task].rows[split] for split in TASKS[task].validation_splits)
    share = base / 100  # a correlation's is 0, and the variance of unrelated answers 1 / n
    return 100 * math.sqrt((share * (1 - share) or 1) / rows)
