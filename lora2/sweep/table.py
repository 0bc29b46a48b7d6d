"""Read tables and profiles (configs/table, configs/profile), and list the runs they need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lora2.config.load import Resolved, resolve
from lora2.config.parse import CONFIGS, options, read_yaml
from lora2.config.problems import ConfigError, Problem, ProblemList, check_section, unknown
from lora2.config.schema import Name, Seed, TaskName, checked, run_name
from lora2.glue.tasks import TASKS
from lora2.paper.numbers import printed_values

AUTO = "auto"  # a profile: paper where it can run, else embedded
ALL = ("1", "2", "3", "4", "figure3")
# Keys in which runs of one cell may differ: the seed, paths, how a batch is split.
PLACES = ("seed", "results.dir", "data.dir", "data.source", "backbone.path", "backbone.revision",
          "train.micro_batch_size", "train.eval_batch_size", "train.save_steps",
          "train.report_to")  # fmt: skip


@checked
class Row:
    """One row of a table: a method with overrides, and the paper's row to compare with."""

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
    encoder: str  # the paper's; a profile may replace it
    tasks: list[TaskName]
    rows: list[Row]
    metrics: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # if not Table 1's
    overrides: list[str] = dataclasses.field(default_factory=list)

    @property
    def stem(self) -> str:  # the start of its files' names
        return str(self.table) if self.kind == "figure" else f"table{self.table}"

    def metrics_of(self, task: str) -> Sequence[str]:
        """Return the metrics of a task that the table shows."""
        return self.metrics.get(task, TASKS[task].score_metrics)

    def reference(self, row: Row) -> Row | None:
        """Return the row to compare ``row`` with; None if it has none, or that row is left out."""
        return next((other for other in self.rows if other.id == row.against), None)


@checked
class Profile:
    """The encoders, data, length and seeds used in place of the paper's."""

    name: str
    note: str  # one sentence, printed before anything runs
    encoders: dict[str, str | None]  # the paper's -> ours; None: nothing replaces it
    seeds: Annotated[list[Seed], Field(min_length=1)] | None  # None: those of the public scripts
    overrides: list[str]  # words of run_glue.py, for every run


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a table's cell."""

    row: str
    task: str
    resolved: Resolved
    words: tuple[str, ...] = ()  # of run_glue.py, for the same run; later ones win

    @property
    def name(self) -> str:
        return run_name(self.resolved.config)


def load_table(name: str, configs: Path = CONFIGS) -> Table:
    """Read configs/table/<name>.yaml; ConfigError names what is wrong in it."""
    values = read_named("table", name, configs, "all")
    source = str(values.pop("rows_of", name))
    rows = _rows(source, values if source == name else read_named("table", source, configs))
    if source != name:  # the paper's rows with an encoder that it prints no numbers for
        rows = [dataclasses.replace(row, paper_row=None, ours=True) for row in rows]
    where, tree = f"table {name}", {**values, "name": name, "rows": rows}
    ProblemList([*check_section(where, Table, tree), *_check_names(where, rows)]).raise_if_any()
    table = Table(**tree)
    ProblemList(_check_cells(where, table)).raise_if_any()
    return table


def load_profile(name: str, configs: Path = CONFIGS) -> Profile:
    """Read configs/profile/<name>.yaml; ConfigError names what is wrong in it."""
    values = {**read_named("profile", name, configs, AUTO), "name": name}
    ProblemList(check_section(f"profile {name}", Profile, values)).raise_if_any()
    return Profile(**values)


def read_named(group: str, name: str, configs: Path, *also: str) -> dict[str, Any]:
    """Read configs/<group>/<name>.yaml; ``also`` are other names that a user may type."""
    if name not in (names := options(group, configs)):
        raise ConfigError([unknown(group, name, [*names, *also])])
    return read_yaml(configs / group / f"{name}.yaml")


def _rows(name: str, values: dict[str, Any]) -> list[Row]:
    rows = values.get("rows")
    if not isinstance(rows, list):
        raise ConfigError([Problem(f"table {name}, rows", rows, "a list of rows")])
    where = f"table {name}, row"
    ProblemList(p for row in rows for p in check_section(where, Row, row)).raise_if_any()
    return [Row(**row) for row in rows]


def _check_names(where: str, rows: Sequence[Row]) -> Iterator[Problem]:
    for key in ("id", "label"):  # labels tell rows apart in the written table
        names = [getattr(row, key) for row in rows]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(f"{where}, {key}", name, "a name of one row only")
    ids = [row.id for row in rows]
    for against in (row.against for row in rows if row.against not in (None, *ids)):
        yield unknown(f"{where}, against", against, ids)


def _check_cells(where: str, table: Table) -> Iterator[Problem]:
    for task, names in table.metrics.items():
        key = f"{where}.metrics.{task}"
        if task not in table.tasks:
            yield unknown(key, names, table.tasks, "not a task of the table", task)
            continue
        allowed = TASKS[task].metric_names
        yield from (unknown(key, name, allowed) for name in names if name not in allowed)
    for row in table.rows:
        try:
            if row.paper_row is not None:
                printed_values(table.table, row.paper_row)
        except LookupError as error:
            yield Problem(f"{where}, paper_row", row.paper_row, wrong=str(error))


def narrow(table: Table, tasks: Sequence[str] | None, rows: Sequence[str] | None) -> Table:
    """Return ``table`` with only these tasks and row ids, in its own order; None keeps all."""
    kept_rows = [row for row in table.rows if rows is None or row.id in rows]
    kept_tasks = [task for task in table.tasks if tasks is None or task in tasks]
    return dataclasses.replace(table, tasks=kept_tasks, rows=kept_rows)


def jobs(
    table: Table, profile: Profile, seeds: Sequence[int] | None, extra: Sequence[str] = ()
) -> list[Job]:
    """Return every run of a table: rows x tasks x seeds, in that order.

    ``seeds`` None keeps the public seed of each cell; ``extra`` words override all others.
    ConfigError names every problem of every cell.
    """
    backbone = profile.encoders.get(table.encoder)
    if backbone is None:
        wrong = f"it has no encoder in place of {table.encoder}"
        raise ConfigError([Problem("profile", profile.name, "another profile", wrong)])
    every, problems = list[Job](), ProblemList()
    for row in table.rows:
        for task in table.tasks:
            words = [f"task={task}", f"method={row.method}", f"backbone={backbone}",
                     *profile.overrides, *table.overrides, *row.overrides, *extra]  # fmt: skip
            with problems.collect():
                resolved = resolve([*words, f"seed={seeds[0]}"] if seeds else words)
                for seed in seeds or [resolved.config.seed]:
                    config = dataclasses.replace(resolved.config, seed=seed)
                    run = dataclasses.replace(resolved, config=config)
                    every.append(Job(row.id, task, run, (*words, f"seed={seed}")))
    problems.raise_if_any()
    return every


def distinct(every: Sequence[Job]) -> list[Job]:
    """Return each run once: tables have runs in common."""
    return list({job.name: job for job in every}.values())
