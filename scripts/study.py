"""A study: learning rates chosen on rows held out of train, then final runs, then its tables.

python scripts/study.py study=small-cpu data.dir=GLUE_FOLDER backbone.path=FOLDER workers=2
python scripts/study.py study=small-cpu data.dir=GLUE_FOLDER backbone.path=FOLDER plan=true
python scripts/study.py study=small-cpu only=final rows=lora2-k1 tasks=mrpc seeds=1
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lora2.experiment.disk import explained
from lora2.experiment.driving import command, summary, sweep_here
from lora2.experiment.studyrequest import StudyRequest, parse_study
from lora2.experiment.studyruns import Part, final_parts, first_rates
from lora2.experiment.tableplan import Job

USAGE = (
    "usage: python scripts/study.py study=NAME [data.dir=DIR] [backbone.path=DIR] [workers=N] "
    "[plan=true] [only=selection|final|tables] [only=final rows=... tasks=... seeds=1,2] "
    "[results.dir=DIR] [key=value of run_glue.py]"
)
SETTLED = ("finished", "diverged")  # a rate that diverged cannot be chosen: that is a result


def main(argv: Sequence[str]) -> int:
    """Check the words, do what is missing, write the report; return the exit code."""
    return command(argv, f"{__doc__}\n{USAGE}", lambda words: run_study(parse_study(words)))


def run_study(request: StudyRequest) -> int:
    """Do or plan the stages asked for; what is finished already is not done again."""
    from lora2.experiment.selection import SelectionError, choose, sentence

    print("\n".join(request.notes), flush=True)
    if request.plan_only:
        return show_plan(request)
    code = 0
    with explained(request.folder):
        if request.does("selection"):
            code = sweep([one.job for one in request.selection], request, SETTLED, "selection")
        try:
            rates = choose(request.study, request.selection, request.folder)
        except SelectionError as error:
            print(error, file=sys.stderr)
            return 1
        chosen = sentence(request.study, rates)
        print(chosen, flush=True)
        parts = final_parts(request.study, rates, request.extra)
        if request.does("final"):
            code = max(code, sweep(request.final_jobs(parts), request, SETTLED[:1], "final"))
        if request.does("tables"):
            code = max(code, write_tables(request, parts, [request.study.note, chosen]))
    return code


def sweep(jobs: Sequence[Job], request: StudyRequest, settled: Sequence[str], stage: str) -> int:
    """Do what is left of a stage; 1 if a run ended otherwise than ``settled``."""
    print(f"{stage}: ", end="", flush=True)
    return summary(jobs, sweep_here(jobs, request.workers, settled), settled)


def write_tables(request: StudyRequest, parts: Sequence[Part], notes: Sequence[str]) -> int:
    """Write runs.csv, curves.csv, tables and figure; 1 if one of them could not be."""
    from lora2.experiment.studyreport import write_report
    from lora2.report.store import StoreError

    try:
        written, lacks = write_report(request.study, parts, request.folder, notes)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in written), flush=True)
    if lacks:
        print("\n".join(lacks), file=sys.stderr)
    return 1 if lacks else 0


def show_plan(request: StudyRequest) -> int:
    """Say what each stage would cost here; nothing is trained or written."""
    from lora2.experiment import plan as costs
    from lora2.experiment.progress import duration
    from lora2.experiment.selection import SelectionError, choose
    from lora2.experiment.sweep import unfinished

    try:
        rates = choose(request.study, request.selection, request.folder, write=False)
    except SelectionError:
        rates = first_rates(request.study)  # a rate changes no cost
    stages = {
        "selection": [one.job for one in request.selection],
        "final": request.final_jobs(final_parts(request.study, rates, request.extra)),
    }
    left = unfinished([job for jobs in stages.values() for job in jobs])
    print("measuring a few steps", flush=True)
    measured = costs.measure(left, tell=lambda line: print(line, flush=True))
    lines = []
    for name, jobs in stages.items():
        lines += (stage := costs.lines(jobs, measured))
        text = costs.render(stage, len(jobs), costs.checkpoint_mb(unfinished(jobs), measured))
        print(f"{name}:\n{text}", flush=True)
    hours, steps = sum(one.hours for one in lines), sum(one.steps for one in lines)
    print(
        f"in all {sum(one.runs - one.done for one in lines)} runs, {steps:,} steps, "
        f"{duration(3600 * hours)} one after another"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
