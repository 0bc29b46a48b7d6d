"""What scripts/study.py is asked for, from its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from lora2.config.parse import CONFIGS, options, overridden
from lora2.config.problems import ConfigError, Problem, ProblemList, unknown
from lora2.config.schema import Count, checked
from lora2.study.spec import Part, Study, load_study
from lora2.sweep.request import Seeds, split_words
from lora2.tables.make import PLACES

DECIDED = {  # by the study's file, so that a word cannot say otherwise
    "backbone": "its profile",
    "protocol": "protocol",
    "ranks": "overrides",
    "train.learning_rate": "rates",
    "train.max_steps": "parts",
    "data.holdout": "holdout",
}


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
    """A checked command line; ``extra`` are words for every run, ``notes`` what to say first."""

    study: Study
    options: Options
    parts: list[Part]  # narrowed to the rows and seeds asked for
    extra: list[str]
    folder: Path  # where runs.csv, rates.csv and the tables go
    notes: list[str]

    def does(self, stage: str) -> bool:
        return self.options.only in (None, stage)

    @property
    def selection(self) -> Path:
        """The results folder of the runs that choose the rates."""
        return self.folder / "selection"

    def selection_words(self) -> list[str]:
        return [*self.extra, f"results.dir={self.selection}"]


def parse_study(argv: Sequence[str], configs: Path = CONFIGS) -> StudyRequest:
    """Read words such as ``study=small-cpu data.dir=DIR backbone.path=DIR workers=2``.

    Raises:
        ConfigError: every word that is wrong, and every run that cannot be.
    """
    problems = ProblemList()
    given, _, extra = split_words(argv, Options, problems)
    problems += _words_refused(extra)
    study = None
    if given.study is None:
        known = ", ".join(options("study", configs))
        problems.append(Problem("study", None, known, "study=NAME is missing"))
    else:
        with problems.collect():
            study = load_study(given.study, configs)
    if study is not None:
        problems += _narrowing_refused(study, given.parts, given.rows, given.seeds)
    problems.raise_if_any()
    assert study is not None
    parts = list(_narrowed(study, given.parts, given.rows, given.seeds))
    if not parts:
        raise ConfigError([Problem("parts", given.parts, "parts that have these rows")])
    jobs = [
        study.candidate(part, row, study.rates[study.source(row)], extra)
        for part in parts
        for row in part.rows
    ]  # every configuration is checked before the first run
    folder = Path(jobs[0].resolved.config.results.dir)
    notes = [*overridden(list(argv)), f"study {study.name}: {study.note}"]
    return StudyRequest(study, given, parts, extra, folder, notes)


def _words_refused(extra: Sequence[str]) -> list[Problem]:
    """Refuse what the study's file decides, and other settings without a folder of their own."""
    typed = dict(word.split("=", 1) for word in extra)
    problems = [
        Problem(key, typed[key], wrong=f"the study's file decides it ({DECIDED[key]})")
        for key in typed
        if key in DECIDED
    ]
    other = [key for key in typed if key not in PLACES and key not in DECIDED]
    if "results.dir" not in typed:
        allowed = "results.dir=DIR beside it: other settings are another study"
        problems += [Problem(key, typed[key], allowed) for key in other]
    return problems


def _narrowing_refused(
    study: Study, names: list[str] | None, rows: list[str] | None, seeds: list[int] | None
) -> list[Problem]:
    there = {
        "parts": (names, {part.name for part in study.parts}),
        "rows": (rows, {row for part in study.parts for row in part.rows}),
        "seeds": (seeds, {seed for part in study.parts for seed in part.seeds}),
    }
    return [
        unknown(key, one, map(str, known))
        for key, (asked, known) in there.items()
        for one in asked or ([""] if asked == [] else [])
        if one not in known
    ]


def _narrowed(
    study: Study, names: list[str] | None, rows: list[str] | None, seeds: list[int] | None
) -> Iterator[Part]:
    for part in study.parts:
        kept = [row for row in part.rows if rows is None or row in rows]
        over = [seed for seed in part.seeds if seeds is None or seed in seeds]
        if (names is None or part.name in names) and kept and over:
            yield dataclasses.replace(part, rows=kept, seeds=over)
