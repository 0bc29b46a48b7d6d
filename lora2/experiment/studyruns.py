"""A study's file -> the runs that choose its rates, and the final runs at those rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lora2.experiment.compose import CONFIGS, read_yaml
from lora2.experiment.problems import ConfigError, Problem
from lora2.experiment.profile import Profile, encoder_for, load_profile
from lora2.experiment.study import Study, StudyTable, table_1
from lora2.experiment.tableplan import Job, TablePlan, jobs, load_table, narrow

Group = tuple[str, ...]  # what shares a rate: see Study.group
Rates = Mapping[Group, float]  # the learning rate chosen for each
Problems = dict[str, Problem]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A run of the selection: one rate of one cell."""

    rate: float
    method: str
    group: Group
    job: Job


@dataclasses.dataclass(frozen=True)
class Part:
    """A table of the study, its seeds and its final runs."""

    plan: TablePlan
    seeds: list[int]
    jobs: list[Job]


def profile_of(study: Study) -> Profile:
    """Return the study's profile, with the study's note."""
    return dataclasses.replace(load_profile(study.profile), note=study.note)


def candidates(study: Study, extra: Sequence[str] = ()) -> list[Candidate]:
    """Return every run of the selection; ``extra`` words win over the study's.

    Raises:
        ConfigError: every problem of every run, each once.
    """
    plan, profile, seeds = table_1(study), profile_of(study), [study.selection_seed]
    problems: Problems = {}
    found: list[Candidate] = []
    for row in plan.rows:
        if row.id not in study.select_rows.get(row.method, [row.id]):
            continue
        for rate in study.grid[row.method]:
            for task in plan.tasks:
                held = [f"data.holdout={study.holdout[task]}", f"train.learning_rate={rate}"]
                words = [*study.words(task), *extra, *held]
                group = study.group(row.method, row.id, task)
                made = _cell(narrow(plan, [task], [row.id]), profile, seeds, words, problems)
                found += [Candidate(rate, row.method, group, job) for job in made]
    if problems:
        raise ConfigError(problems.values())
    return found


def final_parts(study: Study, rates: Rates, extra: Sequence[str] = ()) -> list[Part]:
    """Return Table 1 and the further tables with their runs at the rates chosen.

    Runs of one seed come before those of the next: a sweep stopped early has whole seeds.

    Raises:
        ConfigError: every problem of every run, each once.
    """
    methods = {row.id: row.method for row in table_1(study).rows}
    problems: Problems = {}
    found = []
    for plan, seeds, rate_of in _tables(study):
        made: list[Job] = []
        for row in plan.rows:
            source = rate_of or row.id
            for task in plan.tasks:
                rate = rates[study.group(methods[source], source, task)]
                words = [*study.words(task), *extra, f"train.learning_rate={rate}"]
                part = narrow(plan, [task], [row.id])
                made += _cell(part, profile_of(study), seeds, words, problems)
        made.sort(key=lambda job: job.resolved.config.seed)
        found.append(Part(plan, seeds, made))
    if problems:
        raise ConfigError(problems.values())
    return found


def first_rates(study: Study) -> dict[Group, float]:
    """Return each group's first rate, for a plan made before any is chosen."""
    plan = table_1(study)
    return {
        study.group(row.method, row.id, task): study.grid[row.method][0]
        for row in plan.rows
        for task in plan.tasks
    }


def _tables(study: Study) -> list[tuple[TablePlan, list[int], str | None]]:
    further = [(_part(study, one), one.seeds or study.seeds, one.rate_of) for one in study.tables]
    return [(table_1(study), study.seeds, None), *further]


def _part(study: Study, table: StudyTable) -> TablePlan:
    """Return the study's part of a further table: the clean tasks, unless it names its own."""
    plan, tasks = load_table(table.table), table.tasks
    if tasks is None:
        backbone = encoder_for(load_profile(study.profile), plan.encoder)
        seen = read_yaml(CONFIGS / "backbone" / f"{backbone}.yaml").get("overlap") or []
        tasks = [one for one in study.tasks if one in plan.tasks and one not in seen]
    return narrow(plan, tasks, table.rows)


def _cell(
    plan: TablePlan, profile: Profile, seeds: Sequence[int], words: list[str], problems: Problems
) -> list[Job]:
    """Return the runs of a table narrowed to one cell, or add to ``problems``."""
    try:
        return jobs(plan, profile, seeds, words)
    except ConfigError as error:
        problems |= {str(problem): problem for problem in error.problems}
        return []
