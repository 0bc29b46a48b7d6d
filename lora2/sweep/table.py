"""A table's file -> the runs it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lora2.config.load import Resolved, resolve, run_name
from lora2.config.parse import CONFIGS, options, read_yaml
from lora2.config.problems import ConfigError, Problem, ProblemList, check_section, unknown
from lora2.config.schema import Name, TaskName, checked
from lora2.sweep.check_table import check_metrics, check_paper_row
from lora2.sweep.presets import Profile, encoder_for

ALL = ("1", "2", "3", "4", "figure3")


@checked
class Row:
    """One row of a table: a method with overrides, and the paper's row it stands for."""

    id: Name  # what rows= takes
    label: str
    method: str
    overrides: list[str] = dataclasses.field(default_factory=list)  # words of run_glue.py
    paper_row: dict[str, Any] | None = None  # column values that select the paper's row
    ours: bool = False  # not in the paper
    against: str | None = None  # id of the row it is compared with; None: it is the reference


@checked
class Table:
    """One table or figure; ``times`` is measured step by step, the others from finished runs."""

    name: str
    kind: Literal["scores", "times", "figure"]
    table: Annotated[int, Field(ge=1)] | Name  # the paper's number, or a name of ours
    title: str
    encoder: str  # the paper's; a profile may put another in its place
    tasks: list[TaskName]
    rows: list[Row]
    metrics: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # where not Table 1's
    overrides: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a table's cell."""

    row: str
    task: str
    resolved: Resolved

    @property
    def name(self) -> str:
        return run_name(self.resolved.config)


def load_table(name: str, configs: Path = CONFIGS) -> Table:
    """Read configs/table/<name>.yaml.

    Raises:
        ConfigError: no such table, or a file with wrong keys, ids or references.
    """
    values = _read(name, configs)
    source = str(values.pop("rows_of", name))
    rows = _rows(source, values if source == name else _read(source, configs))
    if source != name:  # the paper's rows with an encoder that it prints no numbers for
        rows = [dataclasses.replace(row, paper_row=None, ours=True) for row in rows]
    where, tree = f"table {name}", {**values, "name": name, "rows": rows}
    problems = check_section(where, Table, tree) + _check_names(where, rows)
    if problems:
        raise ConfigError(problems)
    plan = Table(**tree)
    problems = list(check_metrics(where, plan.tasks, plan.metrics))
    problems += [one for row in rows for one in check_paper_row(where, plan.table, row.paper_row)]
    if problems:
        raise ConfigError(problems)
    return plan


def _read(name: str, configs: Path) -> dict[str, Any]:
    known = options("table", configs)
    if name not in known:
        raise ConfigError([unknown("table", name, [*known, "all"])])
    values = read_yaml(configs / "table" / f"{name}.yaml")
    if not isinstance(values, dict):
        raise ConfigError([Problem(f"table {name}", values, "a mapping with a list of rows")])
    return values


def _rows(name: str, values: dict[str, Any]) -> list[Row]:
    rows = values.get("rows")
    if not isinstance(rows, list):
        raise ConfigError([Problem(f"table {name}, rows", rows, "a list of rows")])
    where = f"table {name}, row"
    problems = [problem for row in rows for problem in check_section(where, Row, row)]
    if problems:
        raise ConfigError(problems)
    return [Row(**row) for row in rows]


def _check_names(where: str, rows: Sequence[Row]) -> list[Problem]:
    ids, problems = [row.id for row in rows], list[Problem]()
    for key in ("id", "label"):  # labels tell rows apart in the written table
        names = [getattr(row, key) for row in rows]
        twice = sorted({one for one in names if names.count(one) > 1})
        problems += [Problem(f"{where}, {key}", one, "one row only") for one in twice]
    against = [row.against for row in rows if row.against not in (None, *ids)]
    return problems + [unknown(f"{where}, against", name, ids) for name in against]


def keys_of_rows(plan: Table) -> set[str]:
    """Return the keys of run_glue.py that tell the rows of a table apart."""
    return {word.partition("=")[0] for row in plan.rows for word in row.overrides}


def narrow(plan: Table, tasks: Sequence[str] | None, rows: Sequence[str] | None) -> Table:
    """Return ``plan`` with only these tasks and row ids, in the plan's order; None keeps all.

    Raises:
        ConfigError: a task or row that the table does not have, or an empty list.
    """
    ids = [row.id for row in plan.rows]
    problems = _unknown("tasks", tasks, plan.tasks, plan.name)
    problems += _unknown("rows", rows, ids, plan.name)
    if problems:
        raise ConfigError(problems)
    kept_rows = [row for row in plan.rows if rows is None or row.id in rows]
    kept_tasks = [task for task in plan.tasks if tasks is None or task in tasks]
    return dataclasses.replace(plan, tasks=kept_tasks, rows=kept_rows)


def _unknown(
    key: str, given: Sequence[str] | None, allowed: Sequence[str], table: str
) -> list[Problem]:
    if given is None:
        return []
    if not given:
        return [Problem(key, "", f"at least one of table {table}: {', '.join(allowed)}")]
    wrong = [name for name in given if name not in allowed]
    return [unknown(key, name, allowed, f"not in table {table}") for name in wrong]


def words(plan: Table, row: Row, task: str, profile: Profile) -> list[str]:
    """Return the words that run_glue.py would take for one cell; later ones win."""
    backbone = encoder_for(profile, plan.encoder)
    groups = [f"task={task}", f"method={row.method}", f"backbone={backbone}"]
    return [*groups, *profile.overrides, *plan.overrides, *row.overrides]


def jobs(
    plan: Table, profile: Profile, seeds: Sequence[int] | None, extra: Sequence[str] = ()
) -> list[Job]:
    """Return every run of a table: rows x tasks x seeds, in that order.

    ``seeds`` None leaves each cell its public seed; ``extra`` are words that win over all others.

    Raises:
        ConfigError: every problem of every cell, each once.
    """
    found: list[Job] = []
    problems = ProblemList()
    for row in plan.rows:
        for task in plan.tasks:
            seed = [f"seed={seeds[0]}"] if seeds else []
            with problems.collect():
                resolved = resolve([*words(plan, row, task, profile), *extra, *seed])
                each = [with_seed(resolved, s) for s in seeds] if seeds else [resolved]
                found += [Job(row.id, task, one) for one in each]
    problems.raise_if_any()
    return found


def with_seed(resolved: Resolved, seed: int) -> Resolved:
    """Return the same run with another seed."""
    config = dataclasses.replace(resolved.config, seed=seed)
    return dataclasses.replace(resolved, config=config)


def distinct(found: Sequence[Job]) -> list[Job]:
    """Return each run once: tables share some of theirs."""
    return list({job.name: job for job in found}.values())
