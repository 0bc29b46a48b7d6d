"""Write runs.csv, a JSON per run, and every table and figure whose runs are in a results folder.

python scripts/report.py results/embedded
python scripts/report.py results/paper table=1 seeds=1,2,3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lora2.config.parse import options
from lora2.config.problems import ConfigError, Problem, ProblemList
from lora2.records.files import DiskFull, explain_full_disk
from lora2.sweep.request import Request, parse
from lora2.sweep.table import Table, load_table

USAGE = (
    "usage: python scripts/report.py results/PROFILE [table=1,3] [profile=NAME] [seeds=1,2,3] "
    "[key=value of run_glue.py that the runs were given]"
)


def main(argv: Sequence[str]) -> int:
    """Collect the runs and write what they allow; return the exit code."""
    if not argv or {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n{USAGE}")
        return 0 if argv else 2
    folder = Path(argv[0])
    from lora2.records.store import StoreError

    try:
        with explain_full_disk(folder):
            return report(folder, argv[1:])
    except (ConfigError, StoreError) as error:
        print(f"{error}\n{USAGE}", file=sys.stderr)
        return 2
    except DiskFull as error:
        print(error, file=sys.stderr)
        return 1


def report(folder: Path, words: Sequence[str]) -> int:
    """Write runs.csv and the tables; of those not asked for by name, skip the empty ones."""
    asked = any(word.startswith("table=") for word in words)
    if not folder.is_dir():
        raise ConfigError([Problem("results folder", str(folder), "an existing folder")])
    if not any(word.startswith("profile=") for word in words):
        words = [*words, f"profile={profile_of(folder)}"]
    request = parse(words, default_tables=options("table"))
    plans = known_plans(request, asked)
    from lora2.records import store
    from lora2.tables import make as reporting
    from lora2.tables import peft_results
    from lora2.tables import times as timetable  # with torch, so not before all is checked

    runs = store.collect(folder)
    print(f"wrote {folder / 'runs.csv'} and {peft_results.write(runs, folder)}: {len(runs)} runs")
    code = 0
    for plan in plans:
        asked_for = (plan, request.profile, folder, request.options.seeds, request.extra)
        try:
            if plan.kind == "times":  # measured by scripts/reproduce.py, not made of runs
                written = timetable.rewrite(load_table(plan.name), request.profile, folder)
            elif not reporting.is_official(plan, request.extra):
                print(reporting.print_table(*asked_for))
                continue
            else:
                written = reporting.report_table(*asked_for, runs)
        except (store.StoreError, FileNotFoundError) as error:
            if asked:
                print(f"{plan.name}: {error}", file=sys.stderr)
                code = 1
            continue
        print("\n".join(f"wrote {path}" for path in written))
    return code


def profile_of(folder: Path) -> str:
    """Return the profile that a results folder is named after, or that of all its runs.

    Raises:
        ConfigError: it is not named after one, and its runs are of several.
    """
    if folder.name in options("profile"):
        return folder.name
    from lora2.records.store import read

    profiles = sorted(set(read(folder)["profile"]))
    if len(profiles) > 1:
        wrong = f"{folder} has runs of several profiles: choose one with profile=NAME"
        raise ConfigError([Problem("profile", None, ", ".join(profiles), wrong)])
    return profiles[0]


def known_plans(request: Request, asked: bool) -> list[Table]:
    """Return the tables that the words fit: all of those asked for by name, else at least one.

    Raises:
        ConfigError: every problem of every run of those that they do not fit.
    """
    plans, problems = list[Table](), ProblemList()
    for plan in request.plans:
        with problems.collect():
            request.jobs_of(plan)
            plans.append(plan)
    if asked or not plans:
        problems.raise_if_any()
    return plans


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
