"""Read a study's file (configs/study/NAME.yaml) and the words of scripts/study.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lora2.config.parse import CONFIGS, options
from lora2.config.problems import ConfigError, Problem, ProblemList, check_section, unknown
from lora2.config.schema import Count, Name, Positive, RunSteps, Seed, TaskName, checked
from lora2.sweep import table as plans
from lora2.sweep.request import Seeds, set_by_rows, split_words
from lora2.sweep.table import PLACES, Job, Profile, Row, Table, jobs, narrow

Words = list[str]  # of run_glue.py
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]  # ids of rows
DECIDED = {  # keys that cannot be typed -> where the study's file sets them
    "backbone": "its profile",
    "protocol": "protocol",
    "ranks": "overrides",
    "train.learning_rate": "rates",
    "train.max_steps": "parts",
    "data.holdout": "holdout",
}


@checked
class Part:
    """One task at one number of steps: the rows to run, each at its chosen rate, and the seeds."""

    name: Name
    task: TaskName
    steps: RunSteps
    rows: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds
    overrides: Words = dataclasses.field(default_factory=list)


@checked
class Question:
    """A question, and the pairs of rows whose difference answers it in every part with both."""

    ask: str
    pairs: Annotated[list[Pair], Field(min_length=1)]  # [first, second]: first minus second


@checked
class Study:
    """A study, as set by one file of configs/study."""

    name: str
    note: str  # one sentence, printed before anything runs
    profile: str
    protocol: Literal["public", "equal"]
    selection_seed: Seed  # of the runs that choose the rates; not allowed for final runs
    holdout: dict[TaskName, Count]  # rows of the training split that the rates are chosen on
    margin: dict[TaskName, Positive]  # percentage points within which rows count as equivalent
    rates: dict[str, Positive]  # row -> middle of its first grid: half, once and twice that rate
    parts: Annotated[list[Part], Field(min_length=1)]  # in the order in which they are run
    rows: list[Row] = dataclasses.field(default_factory=list)  # besides those of Table 1
    rate_of: dict[str, str] = dataclasses.field(default_factory=dict)  # row -> whose rate it takes
    overrides: Words = dataclasses.field(default_factory=list)  # of every run
    questions: list[Question] = dataclasses.field(default_factory=list)

    @cached_property
    def table(self) -> Table:
        """Table 1 with the study's rows appended, for the study's tasks."""
        plan = plans.load_table("1")
        tasks = [task for task in plan.tasks if any(part.task == task for part in self.parts)]
        return dataclasses.replace(plan, rows=[*plan.rows, *self.rows], tasks=tasks)

    @cached_property
    def _profile(self) -> Profile:
        return plans.load_profile(self.profile)

    def source(self, row: str) -> str:
        return self.rate_of.get(row, row)

    def job(self, part: Part, row: str, rate: float, seed: int, extra: Sequence[str] = ()) -> Job:
        """Return one final run; ConfigError names every problem of its configuration."""
        words = [f"protocol={self.protocol}", *self.overrides, f"train.max_steps={part.steps}",
                 *part.overrides, f"train.learning_rate={rate!r}", *extra]  # fmt: skip
        return jobs(narrow(self.table, [part.task], [row]), self._profile, [seed], words)[0]

    def candidate(self, part: Part, row: str, rate: float, extra: Sequence[str] = ()) -> Job:
        """Return the run that scores one rate of a row on the held-out rows."""
        holdout = f"data.holdout={self.holdout[part.task]}"
        return self.job(part, row, rate, self.selection_seed, [*extra, holdout])


@checked
class Options:
    """The words of scripts/study.py that are not keys of a run."""

    study: str | None = None
    only: Literal["selection", "final", "tables"] | None = None  # a stage; None: all
    workers: Count | None = None
    plan: bool = False
    parts: list[str] | None = None
    rows: list[str] | None = None
    seeds: Seeds | None = None


@dataclasses.dataclass(frozen=True)
class StudyRequest:
    study: Study
    options: Options
    parts: list[Part]  # narrowed to the rows and seeds asked for
    extra: list[str]  # words for every run
    folder: Path  # of runs.csv, rates.csv and the tables

    def does(self, stage: str) -> bool:
        return self.options.only in (None, stage)

    @property
    def selection(self) -> Path:
        """The results folder of the runs that choose the rates."""
        return self.folder / "selection"

    def selection_words(self) -> list[str]:
        return [*self.extra, f"results.dir={self.selection}"]


def load_study(name: str, configs: Path = CONFIGS) -> Study:
    """Read configs/study/<name>.yaml; ConfigError names what is wrong in it."""
    where = f"study {name}"
    tree: dict[str, Any] = {**plans.read_named("study", name, configs), "name": name}
    problems = ProblemList()
    for key, kind in (("parts", Part), ("rows", Row), ("questions", Question)):
        if isinstance(entries := tree.get(key), list):
            wrong = [p for entry in entries for p in check_section(f"{where}, {key}", kind, entry)]
            tree[key] = entries if wrong else [kind(**entry) for entry in entries]
            problems += wrong
    problems.raise_if_any()
    ProblemList(check_section(where, Study, tree)).raise_if_any()
    study = Study(**tree)
    ProblemList(_check(where, study)).raise_if_any()
    return study


def _check(where: str, study: Study) -> Iterator[Problem]:
    """Yield undefined and duplicate names, and missing rates, holdouts and margins."""
    rows = [row.id for row in study.table.rows]
    for key, names in (("rows", rows), ("parts", [part.name for part in study.parts])):
        for name in {name for name in names if names.count(name) > 1}:
            yield Problem(f"{where}, {key}", name, "a name used once")
    used = [(f"rate_of.{row}", row) for row in study.rate_of]
    used += [(f"rates.{row}", row) for row in study.rates]
    used += [(f"{part.name}.rows", row) for part in study.parts for row in part.rows]
    used += [("questions", row) for q in study.questions for pair in q.pairs for row in pair]
    yield from (unknown(f"{where}, {key}", row, rows) for key, row in used if row not in rows)
    budgets: dict[tuple[str, int], Words] = {}  # scores of one are compared whatever their part
    for part in study.parts:
        alike = budgets.setdefault((part.task, part.steps), part.overrides)
        if set(alike) != set(part.overrides):
            wrong = "a part of the same task and steps has others"
            yield Problem(f"{where}, {part.name}.overrides", part.overrides, str(alike), wrong)
        for key in ("holdout", "margin"):
            if part.task not in getattr(study, key):
                yield Problem(f"{where}, {key}", None, f"a value for {part.task}")
        for row in part.rows:
            if study.source(row) not in study.rates:
                yield Problem(f"{where}, rates", None, f"a rate for {row}")
        if study.selection_seed in part.seeds:
            allowed = "other than the seeds of the final runs"
            yield Problem(f"{where}, selection_seed", study.selection_seed, allowed)


def parse_study(argv: Sequence[str]) -> StudyRequest:
    """Read words such as ``study=small-cpu data.dir=DIR workers=2``; check every configuration."""
    problems = ProblemList()
    given, _, extra = split_words(argv, Options, problems)
    problems += _refused_words(extra)
    if given.study is None:
        names = ", ".join(options("study"))
        raise ConfigError([*problems, Problem("study", None, names, "study=NAME is missing")])
    with problems.collect():
        study = load_study(given.study)
        problems += [*_unknown_names(study, given), *set_by_rows([study.table], extra)]
    problems.raise_if_any()
    parts = list[Part]()
    for part in study.parts:
        rows = [row for row in part.rows if given.rows is None or row in given.rows]
        seeds = [seed for seed in part.seeds if given.seeds is None or seed in given.seeds]
        if (given.parts is None or part.name in given.parts) and rows and seeds:
            parts.append(dataclasses.replace(part, rows=rows, seeds=seeds))
    if not parts:
        raise ConfigError([Problem("parts", given.parts, "parts that have these rows and seeds")])
    first, *_ = [study.candidate(part, row, study.rates[study.source(row)], extra)
                 for part in parts for row in part.rows]  # all are checked  # fmt: skip
    return StudyRequest(study, given, parts, extra, Path(first.resolved.config.results.dir))


def _refused_words(extra: Sequence[str]) -> Iterator[Problem]:
    """Refuse what the study's file decides, and other settings without a separate results.dir."""
    typed = dict(word.split("=", 1) for word in extra)
    for key, value in typed.items():
        if key in DECIDED:
            yield Problem(key, value, wrong=f"the study's file sets it ({DECIDED[key]})")
        elif key not in PLACES and "results.dir" not in typed:
            yield Problem(key, value, "only with results.dir=DIR: other settings are another study")


def _unknown_names(study: Study, given: Options) -> Iterator[Problem]:
    parts = study.parts
    available = {"parts": {part.name for part in parts},
                 "rows": {row for part in parts for row in part.rows},
                 "seeds": {seed for part in parts for seed in part.seeds}}  # fmt: skip
    for key, names in available.items():
        typed = getattr(given, key)
        wrong = [""] if typed == [] else [name for name in typed or [] if name not in names]
        yield from (unknown(key, name, map(str, names)) for name in wrong)
