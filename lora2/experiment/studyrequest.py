"""What scripts/study.py is asked for, from its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora2.experiment.compose import CONFIGS, options, overridden
from lora2.experiment.problems import ConfigError, Problem, nearest
from lora2.experiment.reporting import PLACES
from lora2.experiment.request import sort_words
from lora2.experiment.study import Study, load_study
from lora2.experiment.studyruns import Candidate, Part, candidates, final_parts, first_rates
from lora2.experiment.tableplan import Job
from lora2.experiment.words import comma_list, flag, positive, seed_list

STAGES = ("selection", "final", "tables")
OWN = ("study", "only", "workers", "plan", "tasks", "rows", "seeds")
NARROWING = ("tasks", "rows", "seeds")
DECIDED = {  # by the study's file, so that a word cannot say otherwise
    "backbone": "its profile",
    "protocol": "protocol",
    "ranks": "overrides",
    "train.learning_rate": "grid",
    "data.holdout": "holdout",
}


@dataclasses.dataclass(frozen=True)
class StudyRequest:
    """A checked command line; ``extra`` are words for every run, ``notes`` what to say first."""

    study: Study
    only: str | None  # a stage of STAGES; None: all
    workers: int | None
    plan_only: bool
    tasks: list[str] | None  # of the final runs; None: all
    rows: list[str] | None
    seeds: list[int] | None
    extra: list[str]
    folder: Path  # where the tables, rates.csv and curves.csv go
    selection: list[Candidate]
    notes: list[str]

    def does(self, stage: str) -> bool:
        return self.only in (None, stage)

    def final_jobs(self, parts: Sequence[Part]) -> list[Job]:
        """Return each final run once, of the tasks, rows and seeds asked for."""
        found: dict[str, Job] = {}
        for job in (job for part in parts for job in part.jobs):
            tasks, rows, seeds = self.tasks, self.rows, self.seeds
            other = (
                (tasks is not None and job.task not in tasks)
                or (rows is not None and job.row not in rows)
                or (seeds is not None and job.resolved.config.seed not in seeds)
            )
            if not other:
                found.setdefault(job.name, job)  # under the first table that has it
        return list(found.values())


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
    study = _load(own.get("study"), configs, problems)
    if study is None or problems:
        raise ConfigError(problems)
    parts = final_parts(study, first_rates(study), extra)
    folder = Path(parts[0].jobs[0].resolved.config.results.dir)
    problems += _narrowing_refused(own, only, parts)
    if problems:
        raise ConfigError(problems)
    return StudyRequest(
        study=study,
        only=only,
        workers=workers,
        plan_only=plan_only,
        tasks=comma_list(own.get("tasks")),
        rows=comma_list(own.get("rows")),
        seeds=seeds,
        extra=extra,
        folder=folder,
        selection=candidates(study, [*extra, f"results.dir={folder / 'selection'}"]),
        notes=[*overridden(list(argv)), f"study {study.name}: {study.note}"],
    )


def _load(name: str | None, configs: Path, problems: list[Problem]) -> Study | None:
    try:
        if name is not None:
            return load_study(name, configs)
        known = ", ".join(options("study", configs))
        problems.append(Problem("study", None, f"say study=NAME; allowed: {known}"))
    except ConfigError as error:
        problems += error.problems
    return None


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
    own: Mapping[str, str], only: str | None, parts: Sequence[Part]
) -> list[Problem]:
    """Refuse tasks, rows and seeds that no final run has, and any without only=final."""
    asked = [key for key in NARROWING if key in own]
    if asked and only != "final":
        return [
            Problem(key, own[key], "only=final beside it: rates and tables need all runs")
            for key in asked
        ]
    jobs = [job for part in parts for job in part.jobs]
    there = {
        "tasks": {job.task for job in jobs},
        "rows": {job.row for job in jobs},
        "seeds": {str(job.resolved.config.seed) for job in jobs},
    }
    return [
        Problem(key, one, nearest(one, there[key]))
        for key in asked
        for one in comma_list(own[key]) or [""]
        if one not in there[key]
    ]
