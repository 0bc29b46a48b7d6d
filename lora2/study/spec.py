"""A study's file (configs/study/NAME.yaml) and the runs it stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lora2.config.parse import CONFIGS, options, read_yaml
from lora2.config.problems import ConfigError, Problem, check_section, unknown
from lora2.config.schema import Count, Name, Positive, RunSteps, Seed, TaskName, checked
from lora2.sweep.presets import load_profile
from lora2.sweep.table import Job, Row, Table, jobs, load_table, narrow

Seeds = Annotated[list[Seed], Field(min_length=1)]
Words = list[str]  # of run_glue.py
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]  # ids of rows


@checked
class Part:
    """One task at one budget: its rows, each at the rate chosen for it, over seeds."""

    name: Name
    task: TaskName
    steps: RunSteps
    rows: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds
    overrides: Words = dataclasses.field(default_factory=list)


@checked
class Question:
    """A question and the pairs of rows whose difference answers it, in every part with both."""

    ask: str
    pairs: Annotated[list[Pair], Field(min_length=1)]  # [first, second]: first minus second


@checked
class Study:
    """One file of configs/study."""

    name: str
    note: str  # one sentence, printed before anything runs and under the tables
    profile: str
    protocol: Literal["public", "equal"]
    selection_seed: Seed  # of the runs that choose the rates; no final run has it
    holdout: dict[TaskName, Count]  # rows of train that the rates are chosen on
    margin: dict[TaskName, Positive]  # percent points within which two rows count as equivalent
    rates: dict[str, Positive]  # row -> middle of its first grid: half, once and twice that rate
    parts: Annotated[list[Part], Field(min_length=1)]  # in the order in which they are run
    rows: list[Row] = dataclasses.field(default_factory=list)  # beside those of Table 1
    rate_of: dict[str, str] = dataclasses.field(default_factory=dict)  # row -> whose rate it takes
    overrides: Words = dataclasses.field(default_factory=list)  # of every run
    questions: list[Question] = dataclasses.field(default_factory=list)

    def table(self) -> Table:
        """Return Table 1 with the study's rows after its own and the study's tasks."""
        plan = load_table("1")
        tasks = [task for task in plan.tasks if any(part.task == task for part in self.parts)]
        return dataclasses.replace(plan, rows=[*plan.rows, *self.rows], tasks=tasks)

    def source(self, row: str) -> str:
        """Return the row whose chosen rate ``row`` takes."""
        return self.rate_of.get(row, row)

    def job(self, part: Part, row: str, rate: float, seed: int, extra: Sequence[str] = ()) -> Job:
        """Return one final run.

        Raises:
            ConfigError: every problem of its configuration.
        """
        words = [
            f"protocol={self.protocol}",
            *self.overrides,
            f"train.max_steps={part.steps}",
            *part.overrides,
            f"train.learning_rate={rate!r}",
            *extra,
        ]
        profile = dataclasses.replace(load_profile(self.profile), note=self.note)
        return jobs(narrow(self.table(), [part.task], [row]), profile, [seed], words)[0]

    def candidate(self, part: Part, row: str, rate: float, extra: Sequence[str] = ()) -> Job:
        """Return the run that scores one rate of a row on the rows held out."""
        held = f"data.holdout={self.holdout[part.task]}"
        return self.job(part, row, rate, self.selection_seed, [*extra, held])


def load_study(name: str, configs: Path = CONFIGS) -> Study:
    """Read configs/study/<name>.yaml.

    Raises:
        ConfigError: no such study, or a file with wrong keys, rows, tasks or rates.
    """
    known = options("study", configs)
    if name not in known:
        raise ConfigError([unknown("study", name, known)])
    values = read_yaml(configs / "study" / f"{name}.yaml")
    where = f"study {name}"
    if not isinstance(values, dict):
        raise ConfigError([Problem(where, values, "a mapping of keys to values")])
    tree: dict[str, Any] = {**values, "name": name}
    problems = []
    for key, kind in (("parts", Part), ("rows", Row), ("questions", Question)):
        listed = tree.get(key)
        for one in listed if isinstance(listed, list) else []:
            problems += check_section(f"{where}, {key}", kind, one)
        if not problems and isinstance(listed, list):
            tree[key] = [kind(**one) for one in listed]
    if problems:
        raise ConfigError(problems)
    if problems := check_section(where, Study, tree):
        raise ConfigError(problems)
    study = Study(**tree)
    if problems := _check(where, study):
        raise ConfigError(problems)
    return study


def _check(where: str, study: Study) -> list[Problem]:
    """Return the names that a study uses and does not have."""
    rows = [row.id for row in study.table().rows]
    problems = [
        Problem(f"{where}, {key}", None, f"a value for {part.task}, a task of the study")
        for part in study.parts
        for key in ("holdout", "margin")
        if part.task not in getattr(study, key)
    ]
    problems += [
        Problem(f"{where}, {key}", name, "one of each")
        for key, names in (("rows", rows), ("parts", [part.name for part in study.parts]))
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    used = {f"rate_of.{row}": row for row in study.rate_of}
    used |= {f"rates.{row}": row for row in study.rates}
    named = [*used.items()]
    named += [(f"{part.name}.rows", row) for part in study.parts for row in part.rows]
    named += [("questions", row) for one in study.questions for pair in one.pairs for row in pair]
    problems += [unknown(f"{where}, {key}", row, rows) for key, row in named if row not in rows]
    for part in study.parts:
        lacking = [row for row in part.rows if study.source(row) not in study.rates]
        problems += [Problem(f"{where}, rates", None, f"a rate for {row}") for row in lacking]
        if study.selection_seed in part.seeds:
            allowed = "other than the seeds of the final runs"
            problems.append(Problem(f"{where}, selection_seed", study.selection_seed, allowed))
    return problems
