"""Estimate what a table costs on this machine: steps, time, memory, disk. Trains nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.records.run_folder import status_of
from lora2.sweep.pool import duration, gpu_count, plan_workers
from lora2.sweep.table import Job


@dataclasses.dataclass(frozen=True)
class Cost:
    seconds: float  # of a training step
    trainable: int
    peak_memory_mb: float
    measured: bool  # False: scaled by tokens from another
    held_mb: float = 0.0  # the part of the memory that does not grow with the batch


Key = tuple[str, str, int]  # row, task, most tokens in a batch: what a step's cost depends on
Costs = dict[Key, Cost]
# Columns of a plan, which has a line per row of the table -> how to combine the row's runs.
COLUMNS = dict.fromkeys(("runs", "done", "steps", "seconds", "step_seconds", "disk_mb"), "sum")
COLUMNS |= {"memory_mb": "max", "checkpoint_mb": "max", "measured": "all"}


def key_of(job: Job) -> Key:
    """Return what decides the cost of a job's step: row, task, and most tokens of a batch."""
    train = job.resolved.config.train
    return job.row, job.task, train.max_seq_length * train.batch_size


def measure(
    jobs: Sequence[Job], workers: int | None = None,
    budget: float = 120.0, tell: Callable[[str], None] = print,
) -> Costs:  # fmt: skip
    """Measure the cost of a step for each row, task and length, with a worker's number of threads.

    Takes a few steps of each, the shortest batch of every row first. After ``budget`` seconds it
    measures only rows without any measurement: the remaining costs are scaled by tokens, from the
    same row where possible.
    """
    import torch

    from lora2.bench import step

    threads = int(plan_workers(jobs, workers)[0]["OMP_NUM_THREADS"]) if jobs else 1
    torch.set_num_threads(threads)
    if warning := busy_warning(threads):
        tell(warning)
    wanted, costs = {key_of(job): job for job in jobs}, Costs()
    started = time.monotonic()
    for key in _order(wanted):
        if time.monotonic() - started > budget and any(row == key[0] for row, *_ in costs):
            continue
        resolved = wanted[key].resolved
        batches = step.batches(resolved.config, 3)
        runs = {key[0]: (resolved.config, resolved.steps or 10_000)}
        result = step.measure(runs, batches, rounds=3, warm_up=1)[key[0]]
        memory, held = result.peak_memory_mb, result.held_memory_mb
        seconds = statistics.median(result.seconds)
        costs[key] = Cost(seconds, result.trainable, memory, True, held)
        size = f"{resolved.config.train.batch_size} x {result.tokens:.0f} tokens"
        tell(f"  {key[0]}, {key[1]}, {size}: {seconds:.3f} s/step")
    missing, sizes = wanted.keys() - costs.keys(), dict[Key, float]()
    for key, job in wanted.items() if missing else ():
        drawn = step.batches(job.resolved.config, 8)
        sizes[key] = statistics.mean(batch["input_ids"].numel() for batch in drawn)
    return costs | {key: _scaled(key, costs, sizes) for key in missing}


def busy_warning(threads: int) -> str | None:
    """Return a warning if the load of this machine exceeds its number of cores."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    meaning = "are CPU time, without waiting for other programs"
    if threads > 1 or gpu_count():
        meaning = "are longer than on an idle machine"
    busy = f"this machine is busy, load {load:.1f} on {cores} cores: the times below {meaning}"
    return busy if load > cores else None


def _order(wanted: Mapping[Key, Job]) -> list[Key]:
    """Return every row's shortest batch, then every row's next, and so on."""
    rows, places = Counter[str](), list[tuple[int, int, Key]]()
    for key in sorted(wanted, key=lambda key: (key[2], key)):
        places.append((rows[key[0]], key[2], key))
        rows[key[0]] += 1
    return [key for *_, key in sorted(places)]


def _scaled(key: Key, costs: Costs, sizes: Mapping[Key, float]) -> Cost:
    same_row = [other for other in costs if other[0] == key[0]] or list(costs)
    nearest = min(same_row, key=lambda other: abs(math.log(sizes[other] / sizes[key])))
    ratio, cost = sizes[key] / sizes[nearest], costs[nearest]
    memory = cost.held_mb + (cost.peak_memory_mb - cost.held_mb) * max(1.0, ratio)
    return Cost(cost.seconds * ratio, cost.trainable, memory, False, cost.held_mb)


def sum_up(jobs: Sequence[Job], costs: Costs, timed_steps: int = 0) -> pd.DataFrame:
    """Return a line of ``COLUMNS`` for each row: its runs, and the cost of the unfinished ones.

    In a table of times each run takes ``timed_steps`` and writes nothing.
    """
    runs = []
    for job in jobs:
        config = job.resolved.config
        run = {"row": job.row, **dict.fromkeys(COLUMNS, 0), "runs": 1, "measured": True}
        if not timed_steps and status_of(config) == "finished":
            runs.append({**run, "done": 1})
            continue
        cost, steps = costs[key_of(job)], timed_steps or job.resolved.steps or 0
        seconds = cost.seconds * steps
        run |= {"steps": steps, "seconds": seconds, "step_seconds": seconds,
                "memory_mb": cost.peak_memory_mb, "measured": cost.measured}  # fmt: skip
        if not timed_steps:
            weights = 4 * cost.trainable  # bytes of float32
            run["seconds"] += cost.seconds * evaluation_steps(config, steps)
            run["disk_mb"] = (weights + 0.3e6) / 2**20  # predictions, history, ranks
            if config.train.save_steps is not None:  # weights and AdamW's two moments
                run["checkpoint_mb"] = 3 * weights / 2**20
        runs.append(run)
    return pd.DataFrame(runs, columns=["row", *COLUMNS]).groupby("row", sort=False).agg(COLUMNS)


def evaluation_steps(config: RunConfig, steps: int) -> float:
    """Return the number of training steps that take as long as a run's evaluations."""
    from lora2.embedded.grammar import ROWS

    task, rows = TASKS[config.task], config.data.holdout
    if rows is None and config.data.source == "embedded":
        rows = ROWS[task.name][1] * len(task.validation_splits)
    elif rows is None:
        rows = sum(task.rows[split] for split in task.validation_splits)
    evaluations = math.ceil(steps / config.train.eval_steps)
    return evaluations * rows / config.train.batch_size / 3  # no backward pass


def render(plan: pd.DataFrame, workers: int = 1) -> str:
    """Return the lines of ``sum_up`` as a text table, with totals and notes below."""
    width = max(12, *map(len, plan.index))
    body = [
        f"{'row':<{width}}{'runs':>6}{'done':>6}{'steps':>12}{'s/step':>9}{'time':>11}"
        f"{'memory MiB':>12}{'disk MiB':>10}"
    ]
    body += [
        f"{line.Index:<{width}}{line.runs:>6}{line.done:>6}{line.steps:>12,}"
        f"{line.step_seconds / max(1, line.steps):>9.3f}{duration(line.seconds):>11}"
        f"{line.memory_mb:>12,.0f}{line.disk_mb:>10,.1f}{'' if line.measured else '  ~'}"
        for line in plan.itertuples()
    ]
    total = plan.sum()
    checkpoint = plan["checkpoint_mb"].max() if len(plan) else 0.0
    at_once = f", {duration(total.seconds / workers)} with {workers} at once" if workers > 1 else ""
    notes = [
        f"{total.runs - total.done:.0f} of {total.runs:.0f} runs to do, {total.steps:,.0f} steps: "
        f"{duration(total.seconds)} one after another{at_once}, evaluations included",
        f"disk: {total.disk_mb:,.0f} MiB of results, and up to {checkpoint:,.0f} MiB of "
        "checkpoints for each run in progress",
        "memory: weights, optimiser state and the peak of a step, on the "
        f"{'GPU' if gpu_count() else 'CPU'}",
    ]
    if not plan["measured"].all():
        notes.append("~ not all sizes were measured: the others are scaled by tokens")
    return "\n".join(body + notes)
