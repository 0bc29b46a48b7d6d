"""What scripts/reproduce.py and scripts/report.py are asked for, from their words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora2.config import safe_yaml
from lora2.config.compose import CONFIGS, options, overridden, read_yaml
from lora2.config.parse_values import comma_list, flag, positive, seed_list
from lora2.config.problems import ConfigError, Problem, nearest
from lora2.sweep.presets import AUTO, Profile, choose, encoder_for, load_profile
from lora2.sweep.table import ALL, Job, Table, jobs, load_table, narrow

OWN = ("table", "profile", "seeds", "tasks", "rows", "cluster", "workers", "plan", "wait")
REPORTED = ("table", "profile", "seeds", "tasks", "rows")  # of these, what a report asks
REPLACED = {"task": "tasks", "method": "rows", "seed": "seeds"}  # run_glue's word -> ours
CLUSTERS = ("local", "slurm")


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line; ``extra`` are words for every run, ``notes`` what to say first."""

    plans: list[Table]
    profile: Profile
    seeds: list[int] | None
    cluster: str
    workers: int | None
    plan_only: bool
    wait: bool
    slurm: dict[str, Any]
    extra: list[str]
    notes: list[str]

    def jobs_of(self, plan: Table) -> list[Job]:
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
    problems: list[Problem] = []
    own, slurm, extra = sort_words(argv, OWN if default_tables is None else REPORTED, problems)
    plans = _plans(own, default_tables, problems)
    cluster = own.get("cluster", "local")
    if cluster not in CLUSTERS:
        problems.append(Problem("cluster", cluster, nearest(cluster, CLUSTERS)))
    seeds = seed_list(own.get("seeds"), problems)
    workers = positive(own.get("workers"), problems)
    plan_only = flag("plan", own.get("plan", "false"), problems)
    wait = flag("wait", own.get("wait", "true"), problems)
    for key, value in [("wait", "false")] * (own.get("wait") == "false") + list(slurm.items()):
        if cluster == "local":
            problems.append(Problem(key, value, "nothing without cluster=slurm"))
    problems += _of_rows(plans, extra)
    profile, notes = _profile(own.get("profile", AUTO), plans, extra, problems)
    if profile is None or problems:
        raise ConfigError(problems + _of_runs(plans, profile, extra))
    notes = [*overridden(list(argv)), *notes]
    for_slurm = {key.removeprefix("slurm."): value for key, value in slurm.items()}
    return Request(
        plans, profile, seeds, cluster, workers, plan_only, wait, for_slurm, extra, notes
    )  # fmt: skip


def sort_words(
    argv: Sequence[str], known: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    own: dict[str, str] = {}
    slurm: dict[str, Any] = {}
    extra: list[str] = []
    groups = ("backbone", "protocol", "ranks")
    for word in argv:
        key, sign, value = word.partition("=")
        if not sign or not key:
            problems.append(Problem("command line", word, "every word must read key=value"))
        elif key in known:
            own[key] = value
        elif re.fullmatch(r"slurm\.\w+", key) and "cluster" in known:
            try:
                slurm[key] = safe_yaml.load(value)
            except safe_yaml.YamlError as error:
                problems.append(Problem(key, value, f"a plain value; {error}"))
        elif key in REPLACED:
            problems.append(Problem(key, value, f"{REPLACED[key]}=... picks from a table"))
        elif key in OWN or ("." not in key and key not in groups):
            allowed = nearest(key, [*known, *groups])
            problems.append(Problem(key, value, f"unknown key; {allowed}, or a dotted one"))
        else:
            extra.append(word)
    return own, slurm, extra


def _plans(
    own: Mapping[str, str], default: Sequence[str] | None, problems: list[Problem]
) -> list[Table]:
    names = comma_list(own.get("table")) or ([] if "table" in own else list(default or []))
    if not names:
        known = ", ".join([*options("table"), "all"])
        problems.append(Problem("table", own.get("table"), f"say table=1, or another of {known}"))
    names = [one for name in names for one in (ALL if name == "all" else (name,))]
    plans: list[Table] = []
    try:
        for name in dict.fromkeys(names):
            plans.append(load_table(name))
        tasks, rows = comma_list(own.get("tasks")), comma_list(own.get("rows"))
        return _narrow_all(plans, tasks, rows) if plans else []
    except ConfigError as error:
        problems += error.problems
        return plans


def _of_rows(plans: Sequence[Table], extra: Sequence[str]) -> list[Problem]:
    """Refuse what a table's rows set: typed, it makes rows equal, or other than their label."""
    found: dict[str, Problem] = {}
    for plan in plans:
        own = {word.partition("=")[0] for row in plan.rows for word in row.overrides}
        for key, _, value in (word.partition("=") for word in extra):
            if key in own:
                allowed = f"nothing: table {plan.name} sets it by row; try scripts/run_glue.py"
                found.setdefault(key, Problem(key, value, allowed))
    return list(found.values())


def _of_runs(
    plans: Sequence[Table], profile: Profile | None, extra: Sequence[str]
) -> list[Problem]:
    """Return what is wrong with the runs, for a request that is refused for something else."""
    found: dict[str, Problem] = {}
    for plan in plans if profile is not None else ():
        try:
            jobs(plan, profile, None, extra)
        except ConfigError as error:
            found |= {str(problem): problem for problem in error.problems}
    return list(found.values())


def _narrow_all(
    plans: Sequence[Table], tasks: list[str] | None, rows: list[str] | None
) -> list[Table]:
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


def _profile(
    name: str, plans: Sequence[Table], extra: list[str], problems: list[Problem]
) -> tuple[Profile | None, list[str]]:
    notes: list[str] = []
    if not plans:  # refused already; auto cannot be asked for no encoder
        name = "embedded" if name == AUTO else name
    try:
        if name == AUTO:
            name, notes = choose(plans[0].encoder, extra)
        profile = load_profile(name)
        for plan in plans:
            problems += _other_kind(profile, plan, extra)
    except ConfigError as error:
        problems += error.problems
        return None, notes
    return profile, [*notes, f"profile {profile.name}: {profile.note}"]


def _other_kind(profile: Profile, plan: Table, extra: Sequence[str]) -> list[Problem]:
    """Refuse a typed encoder of another profile: its runs would stand under the wrong heading."""
    typed = [word.partition("=")[2] for word in extra if word.startswith("backbone=")]
    if not typed or typed[-1] not in options("backbone") or not profile.encoders.get(plan.encoder):
        return []
    own, other = (
        read_yaml(CONFIGS / "backbone" / f"{name}.yaml").get("profile")
        for name in (encoder_for(profile, plan.encoder), typed[-1])
    )
    allowed = f"an encoder of profile {profile.name}, or add profile={other}"
    return [] if own == other else [Problem("backbone", typed[-1], allowed)]


def results_folders(found: Mapping[str, Sequence[Job]]) -> list[str]:
    """Return where these runs write, each folder once."""
    return list(
        dict.fromkeys(job.resolved.config.results.dir for jobs in found.values() for job in jobs)
    )
