"""What scripts/study.py is asked for, from its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora2.config.parse import CONFIGS, options, overridden
from lora2.config.parse import comma_list, flag, positive, seed_list
from lora2.config.problems import ConfigError, Problem, nearest
from lora2.study.spec import Part, Study, load_study
from lora2.sweep.request import sort_words
from lora2.tables.make import PLACES

STAGES = ("selection", "final", "tables")
OWN = ("study", "only", "workers", "plan", "parts", "rows", "seeds")
DECIDED = {  # by the study's file, so that a word cannot say otherwise
    "backbone": "its profile",
    "protocol": "protocol",
    "ranks": "overrides",
    "train.learning_rate": "rates",
    "train.max_steps": "parts",
    "data.holdout": "holdout",
}


@dataclasses.dataclass(frozen=True)
class StudyRequest:
    """A checked command line; ``extra`` are words for every run, ``notes`` what to say first."""

    study: Study
    only: str | None  # a stage of STAGES; None: all
    workers: int | None
    plan_only: bool
    parts: list[Part]  # narrowed to the rows and seeds asked for
    extra: list[str]
    folder: Path  # where runs.csv, rates.csv and the tables go
    notes: list[str]

    def does(self, stage: str) -> bool:
        return self.only in (None, stage)

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
    problems: list[Problem] = []
    own, _, extra = sort_words(argv, OWN, problems)
    problems += _words_refused(extra)
    only = own.get("only")
    if only is not None and only not in STAGES:
        problems.append(Problem("only", only, nearest(only, STAGES)))
    workers = positive(own.get("workers"), problems)
    plan_only = flag("plan", own.get("plan", "false"), problems)
    seeds = seed_list(own.get("seeds"), problems)
    study = None
    try:
        if "study" in own:
            study = load_study(own["study"], configs)
        else:
            known = ", ".join(options("study", configs))
            problems.append(Problem("study", None, f"say study=NAME; allowed: {known}"))
    except ConfigError as error:
        problems += error.problems
    if study is None or problems:
        raise ConfigError(problems)
    names, rows = comma_list(own.get("parts")), comma_list(own.get("rows"))
    problems += _narrowing_refused(study, names, rows, seeds)
    if problems:
        raise ConfigError(problems)
    parts = list(_narrowed(study, names, rows, seeds))
    if not parts:
        raise ConfigError([Problem("parts", own.get("parts"), "parts that have these rows")])
    jobs = [
        study.candidate(part, row, study.rates[study.source(row)], extra)
        for part in parts
        for row in part.rows
    ]  # every configuration is checked before the first run
    folder = Path(jobs[0].resolved.config.results.dir)
    notes = [*overridden(list(argv)), f"study {study.name}: {study.note}"]
    return StudyRequest(study, only, workers, plan_only, parts, extra, folder, notes)


def _words_refused(extra: Sequence[str]) -> list[Problem]:
    """Refuse what the study's file decides, and other settings without a folder of their own."""
    typed = dict(word.split("=", 1) for word in extra)
    problems = [
        Problem(key, typed[key], f"nothing: the study's file decides it ({DECIDED[key]})")
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
        Problem(key, one, nearest(str(one), map(str, known)))
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
