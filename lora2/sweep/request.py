"""Parse and check the words of scripts/reproduce.py and scripts/report.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lora2.config.parse import CONFIGS, options, parse_yaml, read_yaml, scalar, word_list
from lora2.config.problems import Problem, ProblemList, check_section, field_names, unknown
from lora2.config.schema import Count, Seed, checked
from lora2.glue.tasks import REPOSITORY
from lora2.hub import unavailable
from lora2.sweep.pool import gpu_count
from lora2.sweep.table import ALL, AUTO, Job, Profile, Table, jobs, load_profile, load_table, narrow

# Words of run_glue.py -> the words to use here.
INSTEAD = {"task": "tasks", "method": "rows", "seed": "seeds"}
GROUPS = ("backbone", "protocol", "ranks")
HOW_TO_PAPER = ("the paper's: profile=paper on a machine with a CUDA GPU, and either a network or "
                "backbone.path=DIR data.dir=DIR")  # fmt: skip
Seeds = Annotated[list[Seed], Field(min_length=1)]
Kind = TypeVar("Kind")


@checked
class ReportOptions:
    """The words of scripts/report.py that are not keys of a run."""

    table: list[str] = dataclasses.field(default_factory=list)
    profile: str = AUTO
    seeds: Seeds | None = None
    tasks: list[str] | None = None
    rows: list[str] | None = None


@checked
class Options(ReportOptions):
    """The words of scripts/reproduce.py that are not keys of a run."""

    cluster: Literal["local", "slurm"] = "local"
    workers: Count | None = None
    plan: bool = False
    submission: bool = False  # zip the predictions of one row's finished runs for the GLUE server
    commands: bool = False  # print a command for each run, and do nothing
    wait: bool = True


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked command line; ``extra`` are words for every run, ``notes`` what to print first."""

    options: Any  # Options, or ReportOptions
    plans: list[Table]
    profile: Profile
    slurm: dict[str, Any]
    extra: list[str]
    notes: list[str]

    def jobs_of(self, plan: Table) -> list[Job]:
        """Return a table's runs (see ``jobs``); times are measured with one seed."""
        seeds = self.options.seeds or self.profile.seeds
        if plan.kind == "times" and seeds is not None:
            seeds = seeds[:1]
        return jobs(plan, self.profile, seeds, self.extra)


def parse(argv: Sequence[str], default_tables: Sequence[str] | None = None) -> Request:
    """Read words such as ``table=1 profile=embedded seeds=1,2,3 rows=lora2-k8 train.max_steps=9``.

    With ``default_tables`` the words are those of scripts/report.py, and ``table=`` is optional.
    Raises ConfigError: every word that is wrong, and what is allowed.
    """
    problems, words = ProblemList(), list(argv)
    if default_tables is not None and not any(word.startswith("table=") for word in words):
        words.append(f"table={','.join(default_tables)}")
    kind: type[ReportOptions] = Options if default_tables is None else ReportOptions
    given, slurm, extra = split_words(words, kind, problems)
    plans = _tables(given, problems)
    problems += set_by_rows(plans, extra)
    profile, notes = _profile(given.profile, plans, extra, problems)
    if isinstance(given, Options) and given.cluster == "local":
        unused: dict[str, Any] = {f"slurm.{key}": value for key, value in slurm.items()}
        unused |= {} if given.wait else {"wait": False}
        for key, value in unused.items():
            problems.append(Problem(key, value, wrong="has no effect without cluster=slurm"))
    if isinstance(given, Options) and given.submission and (given.plan or given.commands):
        problems.append(Problem("submission", True, "false beside plan=true and commands=true"))
    if isinstance(given, Options) and given.commands and {p.kind for p in plans} == {"times"}:
        problems.append(Problem("commands", True, "false: these tables are timed, without runs"))
    if problems and profile is not None:
        for plan in plans:  # so that problems of the runs are reported too
            with problems.collect():
                jobs(plan, profile, None, extra)
    problems.raise_if_any()
    assert profile is not None
    return Request(given, plans, profile, slurm, extra, notes)


def split_words(
    argv: Sequence[str], kind: type[Kind], problems: ProblemList
) -> tuple[Kind, dict[str, Any], list[str]]:
    """Sort words into the options that ``kind`` declares, ``slurm.*``, and words for every run.

    Problems are added to ``problems``; a wrong option keeps its default.
    """
    names, extra = field_names(kind), list[str]()
    values, slurm = dict[str, Any](), dict[str, Any]()
    for word in argv:
        key, sign, text = word.partition("=")
        if not sign or not key:
            problems.append(Problem("command line", word, "words of the form key=value"))
        elif key in names:
            values[key] = _option(key, text)
        elif re.fullmatch(r"slurm\.\w+", key) and "cluster" in names:
            try:
                slurm[key.removeprefix("slurm.")] = parse_yaml(text)
            except ValueError as error:
                problems.append(Problem(key, text, "a plain value", str(error)))
        elif key in INSTEAD:
            problems.append(Problem(key, text, f"{INSTEAD[key]}=..., which picks from a table"))
        elif "." not in key and key not in GROUPS:
            problems.append(unknown(key, text, [*names, *GROUPS], "unknown key", key))
        else:
            extra.append(word)
    for problem in check_section("", kind, values):
        problems.append(problem)
        values.pop(problem.key.partition(".")[0], None)
    return kind(**values), slurm, extra


def _option(key: str, text: str) -> Any:
    if key not in ("table", "tasks", "rows", "parts", "seeds"):
        return text if key in ("profile", "cluster", "study", "only") else scalar(text)
    if key != "seeds":
        return word_list(text)
    return None if text == "null" else list(dict.fromkeys(map(scalar, word_list(text))))


def _tables(given: ReportOptions, problems: ProblemList) -> list[Table]:
    """Return the tables asked for, without those that have none of the tasks or rows asked for."""
    names = [part for name in given.table for part in (ALL if name == "all" else (name,))]
    if not names:
        allowed = ", ".join([*options("table"), "all"])
        problems.append(Problem("table", None, allowed, "table=NAME is missing"))
    plans: list[Table] = []
    for name in dict.fromkeys(names):
        with problems.collect():
            plans.append(load_table(name))
    if len(plans) < len(set(names)):
        return plans
    available = {
        "tasks": (given.tasks, {task for plan in plans for task in plan.tasks}),
        "rows": (given.rows, {row.id for plan in plans for row in plan.rows}),
    }
    for key, (wanted, present) in available.items():
        problems += [unknown(key, name, present) for name in wanted or [] if name not in present]
        if wanted == []:
            problems.append(Problem(key, "", f"at least one of {', '.join(sorted(present))}"))
    narrowed = (narrow(plan, given.tasks, given.rows) for plan in plans)
    kept = [part for part in narrowed if part.tasks and part.rows]
    if plans and not kept and not any(problem.key in available for problem in problems):
        problems.append(Problem("rows", given.rows, wrong="no table has these rows and tasks"))
    return kept or plans


def set_by_rows(plans: Sequence[Table], extra: Sequence[str]) -> Iterator[Problem]:
    """Refuse keys that a table's rows set: typed, they would contradict the rows' labels."""
    for plan in plans:
        keys = {word.partition("=")[0] for row in plan.rows for word in row.overrides}
        for key, _, value in (word.partition("=") for word in extra):
            if key in keys:
                wrong = f"table {plan.name} sets it by row; change it with scripts/run_glue.py"
                yield Problem(key, value, wrong=wrong)


def _profile(
    name: str, plans: Sequence[Table], extra: list[str], problems: ProblemList
) -> tuple[Profile | None, list[str]]:
    notes: list[str] = []
    if name == AUTO and plans:
        name = "paper"
        notes = ["profile auto -> paper: a CUDA GPU, the encoder and GLUE are available"]
        if lacking := what_paper_lacks(plans[0].encoder, extra):
            name, notes = "embedded", [f"profile auto -> embedded: {lacking[0]}"]
            notes += [f"  {line}" for line in (*lacking[1:], HOW_TO_PAPER)]
    profile = None
    with problems.collect():
        profile = load_profile("embedded" if name == AUTO else name)
        notes.append(f"profile {profile.name}: {profile.note}")
        for plan in plans:
            problems += _other_profile(profile, plan, extra)
    return profile, notes


def what_paper_lacks(encoder: str, words: Sequence[str]) -> list[str]:
    """Return the reasons why the paper's profile cannot run here; empty if it can."""
    if gpu_count() == 0:
        return ["no CUDA GPU is visible"]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    raw = read_yaml(CONFIGS / "backbone" / f"{encoder}.yaml")
    needs = [(given.get("backbone.path", raw["path"]), "model")]
    if "data.dir" not in given:
        needs.append((REPOSITORY, "dataset"))
    return list(unavailable(needs).values())


def _other_profile(profile: Profile, plan: Table, extra: Sequence[str]) -> Iterator[Problem]:
    """Refuse a typed encoder of another profile: its runs would appear under the wrong heading."""
    typed = [word.partition("=")[2] for word in extra if word.startswith("backbone=")][-1:]
    usual = profile.encoders.get(plan.encoder)
    if usual and typed and typed[0] in options("backbone"):
        files = (read_yaml(CONFIGS / "backbone" / f"{name}.yaml") for name in (usual, typed[0]))
        ours, other = (file.get("profile") for file in files)
        if ours != other:
            allowed = f"an encoder of profile {profile.name}, or add profile={other}"
            yield Problem("backbone", typed[0], allowed)
