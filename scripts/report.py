"""runs.csv and every table and figure for which there are runs, from a results folder.

python scripts/report.py results/embedded
python scripts/report.py results/paper table=1 seeds=1,2,3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lora2.experiment.compose import options
from lora2.experiment.problems import ConfigError
from lora2.experiment.request import parse

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
    from lora2.report.store import StoreError

    words = list(argv[1:])
    if not any(word.startswith("profile=") for word in words):
        words.append(f"profile={folder.name}")
    try:
        return report(folder, words)
    except (ConfigError, StoreError) as error:
        print(f"{error}\n{USAGE}", file=sys.stderr)
        return 2


def report(folder: Path, words: Sequence[str]) -> int:
    """Write runs.csv and the tables; of those not asked for by name, skip the empty ones."""
    from lora2.experiment import reporting
    from lora2.report import store

    asked = any(word.startswith("table=") for word in words)
    request = parse(words, default_tables=options("table"))
    runs = store.collect(folder)
    print(f"wrote {folder / 'runs.csv'}: {len(runs)} runs")
    code = 0
    for plan in request.plans:
        if plan.kind == "times":
            continue  # measured by scripts/reproduce.py, not made of runs
        try:
            if not reporting.is_official(plan, request.extra):
                asked_for = (plan, request.profile, folder, request.seeds, request.extra)
                print(reporting.print_table(*asked_for))
                continue
            written = reporting.report_table(
                plan, request.profile, folder, request.seeds, request.extra, runs
            )
        except (store.StoreError, FileNotFoundError, ConfigError) as error:
            if asked:
                print(f"{plan.name}: {error}", file=sys.stderr)
                code = 1
            continue
        print("\n".join(f"wrote {path}" for path in written))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
