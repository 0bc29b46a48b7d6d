"""Do a study: choose learning rates on rows held out of train, do the final runs, write the CSVs.

python scripts/study.py study=small-cpu data.dir=GLUE_FOLDER backbone.path=FOLDER workers=2
python scripts/study.py study=small-cpu data.dir=GLUE_FOLDER backbone.path=FOLDER plan=true
python scripts/study.py study=small-cpu parts=cola-2000 rows=lora2-k1 seeds=1 ...

usage: python scripts/study.py study=NAME [data.dir=DIR] [backbone.path=DIR] [workers=N] \
[plan=true] [only=selection|final|tables] [parts=...] [rows=...] [seeds=1,2] \
[results.dir=DIR] [key=value of run_glue.py]"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lora2.records.files import explain_full_disk
from lora2.study.spec import Part, StudyRequest, parse_study
from lora2.sweep.command import command
from lora2.sweep.pool import plan_workers, summary, sweep_here
from lora2.sweep.table import Job


def main(argv: Sequence[str]) -> int:
    return command(argv, __doc__, lambda words: run_study(parse_study(words)))


def run_study(request: StudyRequest) -> int:
    """Do or plan the request part by part; finished runs are not repeated."""
    from lora2.records.store import StoreError
    from lora2.study.select import SelectionError, collect, select, sentences

    print(f"study {request.study.name}: {request.study.note}", flush=True)
    if request.options.plan:
        return show_plan(request)
    code = 0
    with explain_full_disk(request.folder):
        for part in request.parts:
            sources = list(dict.fromkeys(request.study.source(row) for row in part.rows))
            try:
                choices = select(
                    request.study, part, sources, request.selection, request.selection_words(),
                    lambda jobs: sweep(jobs, request, "selection"),
                )  # fmt: skip
            except (SelectionError, StoreError) as error:
                print(error, file=sys.stderr)
                if request.options.only == "tables":  # of the parts that have been run
                    continue
                return 1
            print(f"part {part.name}: rates chosen", *sentences(choices), sep="\n", flush=True)
            rates = {choice.row: choice.rate for choice in choices}
            if request.does("final"):
                code = max(code, sweep(finals(request, part, rates), request, "final"))
            collect(request.study, choices, request.folder, request.extra)
    return code


def finals(request: StudyRequest, part: Part, rates: dict[str, float]) -> list[Job]:
    """Return a part's final runs by seed: a part stopped early has all rows of its first seeds."""
    study = request.study
    return [
        study.job(part, row, rates[study.source(row)], seed, request.extra)
        for seed in part.seeds
        for row in part.rows
    ]


def sweep(jobs: Sequence[Job], request: StudyRequest, stage: str) -> int:
    """Do the runs without a folder or a line in runs.csv; return 1 if any failed or is missing."""
    from lora2.study.select import SETTLED, left

    missing = left(jobs, request.selection if stage == "selection" else request.folder)
    print(f"{stage}: {len(jobs)} runs, {len(missing)} to do", flush=True)
    if not missing or (stage == "selection" and not request.does("selection")):
        return int(bool(missing))
    return summary(missing, sweep_here(missing, request.options.workers, SETTLED), SETTLED)


def show_plan(request: StudyRequest) -> int:
    """Print what each part would cost on this machine; nothing is trained or written."""
    from lora2.study.select import first_grid, left
    from lora2.sweep import cost

    stages: dict[str, list[Job]] = {}
    for part in request.parts:
        study, rates = request.study, request.study.rates
        sources = dict.fromkeys(study.source(row) for row in part.rows)
        grid = [
            study.candidate(part, row, rate, request.selection_words())
            for row in sources
            for rate in first_grid(rates[row])
        ]
        stages[f"{part.name}, selection (grids may grow)"] = left(grid, request.selection)
        stages[f"{part.name}, final"] = left(finals(request, part, rates), request.folder)
    print("measuring a few steps", flush=True)
    every = [job for jobs in stages.values() for job in jobs]
    costs = cost.measure(every, request.options.workers)
    workers = len(plan_workers(every, request.options.workers)) if every else 1
    for name, jobs in {**stages, "total": every}.items():
        print(f"{name}:\n{cost.render(cost.sum_up(jobs, costs), workers)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
