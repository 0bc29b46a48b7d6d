"""Write runs.csv, a JSON per run, and every table and figure whose runs are in a results folder.

python scripts/report.py results/embedded
python scripts/report.py results/paper table=1 seeds=1,2,3

usage: python scripts/report.py results/PROFILE [table=1,3] [profile=NAME] [seeds=1,2,3] \
[key=value of run_glue.py that the runs were given]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lora2.config.parse import options
from lora2.config.problems import ConfigError, Problem, ProblemList
from lora2.records.files import explain_full_disk
from lora2.sweep.command import command
from lora2.sweep.request import Request, parse
from lora2.sweep.table import Table, load_table


def main(argv: Sequence[str]) -> int:
    return command(argv, __doc__, lambda words: report(Path(words[0]), words[1:]))


def report(folder: Path, words: Sequence[str]) -> int:
    """Write runs.csv and the tables; those without runs are errors only if asked for by name."""
    asked = any(word.startswith("table=") for word in words)
    if not folder.is_dir():
        raise ConfigError([Problem("results folder", str(folder), "an existing folder")])
    if not any(word.startswith("profile=") for word in words):
        words = [*words, f"profile={profile_of(folder)}"]
    request = parse(words, default_tables=options("table"))
    tables = possible_tables(request, asked)
    from lora2.records.store import StoreError, collect
    from lora2.tables import peft_results, render, times  # imports torch: not before the checks

    code = 0
    with explain_full_disk(folder):
        try:
            runs = collect(folder)
        except StoreError as error:
            print(error, file=sys.stderr)
            return 2
        target = peft_results.write(runs, folder)
        print(f"wrote {folder / 'runs.csv'} and {target}: {len(runs)} runs")
        for table in tables:
            wanted = (table, request.profile, folder, request.options.seeds, request.extra, runs)
            try:
                if table.kind == "times":  # measured by scripts/reproduce.py, without runs
                    print(times.rewrite(load_table(table.name), request.profile, folder))
                else:
                    print(render.report_table(*wanted))
            except (StoreError, FileNotFoundError) as error:
                if asked:
                    print(f"{table.name}: {error}", file=sys.stderr)
                    code = 1
    return code


def profile_of(folder: Path) -> str:
    """Return the profile that a results folder is named after, or that of all its runs."""
    if folder.name in options("profile"):
        return folder.name
    from lora2.records.store import StoreError, read

    try:
        profiles = sorted(set(read(folder)["profile"]))
    except StoreError as error:
        raise ConfigError([Problem("results folder", str(folder), wrong=str(error))]) from error
    if len(profiles) > 1:
        wrong = f"{folder} has runs of several profiles: choose one with profile=NAME"
        raise ConfigError([Problem("profile", None, ", ".join(profiles), wrong)])
    return profiles[0]


def possible_tables(request: Request, asked: bool) -> list[Table]:
    """Return the tables that the words apply to: all that were asked for, or by default any."""
    tables, problems = [], ProblemList()
    for table in request.plans:
        with problems.collect():
            request.jobs_of(table)
            tables.append(table)
    if asked or not tables:
        problems.raise_if_any()
    return tables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
