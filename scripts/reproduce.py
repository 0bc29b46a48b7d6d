"""Do the missing runs of a table, then write the table.

python scripts/reproduce.py table=1 profile=embedded seeds=1,2,3 workers=2
python scripts/reproduce.py table=1 tasks=rte,mrpc rows=lora2-k8,lora-r8 train.max_steps=500
python scripts/reproduce.py table=1,3,4 profile=paper cluster=slurm slurm.timeout_min=600
python scripts/reproduce.py table=1 plan=true
python scripts/reproduce.py table=1 commands=true
python scripts/reproduce.py table=1 rows=lora2-k8 seeds=1 submission=true

usage: python scripts/reproduce.py table=1|2|3|4|figure3|pruning|roberta-large|all \
[profile=auto|paper|small|embedded] [seeds=1,2,3] [tasks=...] [rows=...] [workers=N] \
[cluster=local|slurm] [slurm.KEY=VALUE] [wait=false] [plan=true] \
[commands=true] [submission=true] [key=value of run_glue.py]"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from lora2.config.problems import ConfigError, Problem
from lora2.records.files import explain_full_disk
from lora2.sweep import pool
from lora2.sweep.command import command, quiet_transformers
from lora2.sweep.request import Request, parse
from lora2.sweep.table import Job, distinct
from lora2.sweep.worker import Outcome


def main(argv: Sequence[str]) -> int:
    return command(argv, __doc__, lambda words: reproduce(parse(words)))


def reproduce(request: Request) -> int:
    """Run or plan every table of the request."""
    commands = request.options.commands
    print("\n".join(request.notes), flush=True, file=sys.stderr if commands else sys.stdout)
    jobs_by_table = {plan.name: request.jobs_of(plan) for plan in request.plans}
    if request.options.plan and not commands:
        return show_plan(request, jobs_by_table)
    scored = [plan for plan in request.plans if plan.kind != "times"]
    jobs = distinct([job for plan in scored for job in jobs_by_table[plan.name]])
    if commands:
        for job in pool.unfinished(jobs):
            print(command_line(job))
        return 0
    if request.options.submission:
        return submit(jobs)
    if (outcomes := sweep(request, jobs)) is None:
        return 0
    complete = write_tables(request, jobs_by_table)
    return max(pool.summary(jobs, outcomes), 0 if complete else 1)


def submit(jobs: Sequence[Job]) -> int:
    """Zip the answers of one finished run of each task for the GLUE server."""
    rows = {(job.row, job.resolved.config.seed) for job in jobs}
    if len(rows) != 1:
        names = " ".join(dict.fromkeys(job.row for job in jobs))
        wrong = f"a submission needs one row and one seed: rows=ROW seeds=SEED, ROW from {names}"
        raise ConfigError([Problem("rows", sorted(row for row, _ in rows), wrong=wrong)])
    if left := pool.unfinished(jobs):
        print(f"not finished: {' '.join(job.name for job in left)}\n"
              "type the same command without submission=true first", file=sys.stderr)  # fmt: skip
        return 1
    from lora2.run.submission import write_zip

    quiet_transformers()
    ((row, seed),) = rows
    configs = [job.resolved.config for job in jobs]
    try:
        path = write_zip(configs, Path(configs[0].results.dir) / f"glue-{row}-s{seed}.zip")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {path}: the last checkpoint of each run; WNLI by its majority class")
    if configs[0].data.source == "embedded":
        print("synthetic sentences: the file is an example, not to be submitted")
    return 0


def command_line(job: Job) -> str:
    """Return the shell command that does one run, on any machine with this repository."""
    last = {word.partition("=")[0]: word for word in job.words}
    words = [word for word in job.words if last[word.partition("=")[0]] is word]
    return shlex.join(["python", "scripts/run_glue.py", *words])


def sweep(request: Request, jobs: Sequence[Job]) -> list[Outcome] | None:
    """Do the unfinished runs; return None if a cluster does them and wait=false."""
    if request.options.cluster == "local":
        return pool.sweep_here(jobs, request.options.workers)
    left = pool.begin(jobs)
    if not left:
        return []
    from lora2.sweep import slurm

    folder = Path(left[0].resolved.config.results.dir)
    ids = slurm.submit(left, folder, request.slurm, request.options.workers)
    print(f"submitted {len(ids)} jobs, {ids[0]} to {ids[-1]}", flush=True)
    if request.options.wait:
        return slurm.watch(left, ids, len(jobs) - len(left))
    print("when they are done, the same command writes the tables")
    return None


def write_tables(request: Request, jobs_by_table: dict[str, list[Job]]) -> bool:
    """Write every table, or print a part or variant of one; return whether that worked for all."""
    from lora2.records.store import StoreError, collect
    from lora2.tables import render

    runs_in, complete = cache(collect), True  # a folder is read once for all tables
    for plan in request.plans:
        jobs, profile, extra = jobs_by_table[plan.name], request.profile, request.extra
        folder = Path(jobs[0].resolved.config.results.dir)
        try:
            with explain_full_disk(folder):
                if plan.kind == "times":
                    from lora2.tables import times  # imports torch, which no other table needs

                    texts = times.texts(plan, times.measure(plan, jobs), profile)
                    whole = render.is_official(plan, extra)
                    shown = render.publish(folder, plan.stem, texts, whole)
                else:
                    about = (plan, profile, folder, request.options.seeds, extra)
                    shown = render.report_table(*about, runs_in(folder))
        except (StoreError, OSError) as error:
            print(f"{plan.name}: not written: {error}", file=sys.stderr)
            complete = False
        else:
            print(shown, flush=True)
    return complete


def show_plan(request: Request, jobs_by_table: dict[str, list[Job]]) -> int:
    """Print what each table would cost on this machine; nothing is trained or written."""
    from lora2.sweep import cost
    from lora2.tables import times as timetable

    for plan in request.plans:
        name, jobs = f"table {plan.name}, profile {request.profile.name}", jobs_by_table[plan.name]
        print(f"{name}: measuring a few steps", flush=True)
        timed = timetable.STEPS if plan.kind == "times" else 0
        left = jobs if timed else pool.unfinished(jobs)
        workers = 1 if timed or not left else len(pool.plan_workers(left, request.options.workers))
        costs = cost.measure(left, workers, tell=partial(print, flush=True))
        print(cost.render(cost.sum_up(jobs, costs, timed), workers), flush=True)
        if timed:
            print("times only: nothing is trained", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
