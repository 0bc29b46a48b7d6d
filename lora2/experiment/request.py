"""What scripts/reproduce.py and scripts/report.py are asked for, from their words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lora2.experiment.problems import ConfigError, Problem, nearest
from lora2.experiment.profile import AUTO, Profile, choose, load_profile
from lora2.experiment.tableplan import ALL, Job, TablePlan, jobs, load_table, narrow

OWN = ("table", "profile", "seeds", "tasks", "rows", "cluster", "workers", "plan", "wait")
REPLACED = {"task": "tasks", "method": "rows", "seed": "seeds"}  # run_glue's word -> ours
CLUSTERS = ("local", "slurm")


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line; ``extra`` are words for every run, ``notes`` what to say first."""

    plans: list[TablePlan]
    profile: Profile
    seeds: list[int] | None
    cluster: str
    workers: int | None
    plan_only: bool
    wait: bool
    slurm: dict[str, Any]
    extra: list[str]
    notes: list[str]

    def jobs_of(self, plan: TablePlan) -> list[Job]:
        """Return a table's runs; times are measured once, without seeds.

        Raises:
            ConfigError: every problem of every run, each once.
        """
        seeds = self.seeds if self.seeds is not None else self.profile.seeds
        if plan.kind == "times" and seeds is not None:
            seeds = seeds[:1]
        return jobs(plan, self.profile, seeds, self.extra)


def parse(argv: Sequence[str], default_tables: Sequence[str] | None = None) -> Request:
    """Read words such as ``table=1 profile=embedded seeds=1,2,3 rows=lora2-k8 train.max_steps=9``.

    Raises:
        ConfigError: every word that is wrong, and what is allowed.
    """
    own, slurm, extra = _sort(argv)
    names = _list(own.get("table")) or list(default_tables or [])
    if not names:
        raise ConfigError([Problem("table", None, "say table=1 (2, 3, 4, figure3, ... or all)")])
    names = [one for name in names for one in (ALL if name == "all" else (name,))]
    plans = [load_table(name) for name in dict.fromkeys(names)]
    tasks, rows = _list(own.get("tasks")), _list(own.get("rows"))
    plans = _narrow_all(plans, tasks, rows)
    problems: list[Problem] = []
    cluster = own.get("cluster", "local")
    if cluster not in CLUSTERS:
        problems.append(Problem("cluster", cluster, nearest(cluster, CLUSTERS)))
    seeds = _seeds(own.get("seeds"), problems)
    workers = _positive(own.get("workers"), problems)
    plan_only = _flag("plan", own.get("plan", "false"), problems)
    wait = _flag("wait", own.get("wait", "true"), problems)
    if problems:
        raise ConfigError(problems)
    profile, notes = _profile(own.get("profile") or AUTO, plans[0].encoder, extra)
    return Request(
        plans, profile, seeds, cluster, workers, plan_only, wait, slurm, extra, notes
    )  # fmt: skip


def _sort(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    own: dict[str, str] = {}
    slurm: dict[str, Any] = {}
    extra: list[str] = []
    problems: list[Problem] = []
    for word in argv:
        key, sign, value = word.partition("=")
        if not sign:
            problems.append(Problem("command line", word, "every word must read key=value"))
        elif key in OWN:
            own[key] = value
        elif key.startswith("slurm."):
            slurm[key.removeprefix("slurm.")] = yaml.safe_load(value)
        elif key in REPLACED:
            problems.append(Problem(key, value, f"{REPLACED[key]}=... picks from a table"))
        elif "." not in key and key not in ("backbone", "protocol", "ranks"):
            allowed = nearest(key, [*OWN, "backbone", "protocol", "ranks"])
            problems.append(Problem(key, value, f"unknown key; {allowed}, or a dotted one"))
        else:
            extra.append(word)
    if problems:
        raise ConfigError(problems)
    return own, slurm, extra


def _narrow_all(
    plans: Sequence[TablePlan], tasks: list[str] | None, rows: list[str] | None
) -> list[TablePlan]:
    """Narrow each table; of several, those with none of the tasks or rows drop out."""
    kept, refusals = [], list[ConfigError]()
    for plan in plans:
        try:
            if len(plans) > 1:
                ids = [row.id for row in plan.rows]
                own_tasks = tasks and [task for task in tasks if task in plan.tasks]
                own_rows = rows and [row for row in rows if row in ids]
                kept.append(narrow(plan, own_tasks, own_rows))
            else:
                kept.append(narrow(plan, tasks, rows))
        except ConfigError as error:
            refusals.append(error)
    everything = {task for plan in plans for task in plan.tasks}
    every_row = {row.id for plan in plans for row in plan.rows}
    problems = [
        Problem("tasks", t, nearest(t, everything)) for t in tasks or [] if t not in everything
    ]
    problems += [
        Problem("rows", r, nearest(r, every_row)) for r in rows or [] if r not in every_row
    ]
    if len(plans) > 1 and problems:
        raise ConfigError(problems)
    if not kept:
        raise refusals[0]
    return kept


def _profile(name: str, encoder: str, extra: list[str]) -> tuple[Profile, list[str]]:
    notes: list[str] = []
    if name == AUTO:
        name, notes = choose(encoder, extra)
    profile = load_profile(name)
    return profile, [*notes, f"profile {profile.name}: {profile.note}"]


def _list(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [part for part in (part.strip() for part in text.strip("[]").split(",")) if part]


def _seeds(text: str | None, problems: list[Problem]) -> list[int] | None:
    if text is None or text == "null":
        return None
    parts = _list(text) or []
    good = [int(part) for part in parts if part.isdecimal() and int(part) < 2**32]
    if len(good) != len(parts) or not good:
        problems.append(Problem("seeds", text, "whole numbers from 0 with commas, such as 1,2,3"))
    return list(dict.fromkeys(good))


def _positive(text: str | None, problems: list[Problem]) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        problems.append(Problem("workers", text, "a whole number of at least 1"))
        return None
    return int(text)


def _flag(key: str, text: str, problems: list[Problem]) -> bool:
    if text not in ("true", "false"):
        problems.append(Problem(key, text, "true or false"))
    return text == "true"


def results_folders(found: Mapping[str, Sequence[Job]]) -> list[str]:
    """Return where these runs write, each folder once."""
    return list(
        dict.fromkeys(job.resolved.config.results.dir for jobs in found.values() for job in jobs)
    )
