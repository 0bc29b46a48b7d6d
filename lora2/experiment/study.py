"""A study's file: rates chosen on rows held out of train, then final runs, on the same budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lora2.experiment.compose import CONFIGS, options, read_yaml
from lora2.experiment.problems import ConfigError, Problem, check_section, nearest
from lora2.experiment.schema import Count, Positive, TaskName, checked
from lora2.experiment.tableplan import TablePlan, load_table, narrow

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Words = list[str]  # of run_glue.py


@checked
class StudyTable:
    """A further table of the study, at the rate of a row of Table 1."""

    table: Literal["3", "4", "figure3", "pruning"]
    rate_of: str  # the row of Table 1 whose chosen rate its rows take
    tasks: list[TaskName] | None = None  # None: its tasks that the study has and that are clean
    rows: list[str] | None = None  # None: all
    seeds: Seeds | None = None  # None: the study's


@checked
class Study:
    """One file of configs/study."""

    name: str
    note: str  # one sentence, printed before anything runs and under the tables
    profile: str
    protocol: Literal["public", "equal"]
    tasks: Annotated[list[TaskName], Field(min_length=1)]
    rows: Annotated[list[str], Field(min_length=1)] | None  # of Table 1; None: all
    seeds: Seeds
    grid: dict[str, Annotated[list[Positive], Field(min_length=1)]]  # method -> learning rates
    select: Literal["method", "row", "method-task", "row-task"]  # what has a rate of its own
    select_rows: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # None named: all
    holdout: dict[TaskName, Count]  # rows of train that the rates are chosen on
    selection_seed: Seed
    overrides: Words = dataclasses.field(default_factory=list)  # of every run
    task_overrides: dict[TaskName, Words] = dataclasses.field(default_factory=dict)
    tables: list[StudyTable] = dataclasses.field(default_factory=list)

    def group(self, method: str, row: str, task: str) -> tuple[str, ...]:
        """Return what shares one chosen rate with this cell: (method or row, and task or not)."""
        first = row if self.select.startswith("row") else method
        return (first, task) if self.select.endswith("-task") else (first,)

    def words(self, task: str) -> Words:
        """Return the words for every run of a task; later ones win."""
        own = self.task_overrides.get(task, [])  # type: ignore[call-overload]
        return [f"protocol={self.protocol}", *self.overrides, *own]


def load_study(name: str, configs: Path = CONFIGS) -> Study:
    """Read configs/study/<name>.yaml.

    Raises:
        ConfigError: no such study, or a file with wrong keys, rows, tasks or rates.
    """
    known = options("study", configs)
    if name not in known:
        raise ConfigError([Problem("study", name, nearest(name, known))])
    values = read_yaml(configs / "study" / f"{name}.yaml")
    where = f"study {name}"
    if not isinstance(values, dict):
        raise ConfigError([Problem(where, values, "a mapping of keys to values")])
    listed = values.get("tables", [])
    problems = [
        problem
        for one in (listed if isinstance(listed, list) else [])
        for problem in check_section(f"{where}, tables", StudyTable, one)
    ]
    if not problems and isinstance(listed, list):
        listed = [StudyTable(**one) for one in listed]
    tree: dict[str, Any] = {**values, "name": name, "tables": [] if problems else listed}
    problems += check_section(where, Study, tree)
    if problems:
        raise ConfigError(problems)
    study = Study(**tree)
    problems = _check(where, study)
    if problems:
        raise ConfigError(problems)
    return study


def _check(where: str, study: Study) -> list[Problem]:
    plan = table_1(study)
    methods = {row.id: row.method for row in plan.rows}
    known = sorted(set(methods.values()))
    lacking = [("grid", one, "learning rates") for one in known if one not in study.grid]
    lacking += [("holdout", one, "rows") for one in study.tasks if one not in study.holdout]
    problems = [
        Problem(f"{where}, {key}", None, f"{what} for {one}, which the study has")
        for key, one, what in lacking
    ]
    for key in ("grid", "select_rows"):
        unknown = [one for one in getattr(study, key) if one not in known]
        problems += [Problem(f"{where}, {key}", one, nearest(one, known)) for one in unknown]
    return problems + _check_rows(where, study, methods)


def _check_rows(where: str, study: Study, methods: dict[str, str]) -> list[Problem]:
    """Return the rows and tasks named that the study does not have; ``methods`` by row."""
    problems = []
    for method, rows in study.select_rows.items():
        allowed = [row for row, one in methods.items() if one == method]
        wrong = [row for row in rows or [""] if row not in allowed]
        problems += [Problem(f"{where}, select_rows", o, nearest(o, allowed)) for o in wrong]
    if study.select_rows and study.select.startswith("row"):
        allowed = "nothing where each row has a rate of its own; or select: method"
        problems.append(Problem(f"{where}, select_rows", study.select_rows, allowed))
    for table in study.tables:
        if table.rate_of not in methods:
            allowed = nearest(table.rate_of, methods)
            problems.append(Problem(f"{where}, tables, rate_of", table.rate_of, allowed))
        rest = [one for one in table.tasks or [] if one not in study.tasks]
        problems += [Problem(f"{where}, tables, tasks", o, nearest(o, study.tasks)) for o in rest]
    return problems


def table_1(study: Study) -> TablePlan:
    """Return the study's part of Table 1."""
    return narrow(load_table("1"), study.tasks, study.rows)
