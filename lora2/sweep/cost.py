"""Estimate what a table costs on this machine: steps, time, memory, disk. Trains nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.records.paths import status_of
from lora2.sweep.pool import duration, gpu_count, plan_workers
from lora2.sweep.table import Job

BUDGET = 120.0  # seconds of measuring; what is left then is scaled from what was measured
PATIENCE = 3.0  # times the budget, for rows of which nothing is measured yet
BATCHES = 8  # over which a run's padded length is averaged
FORWARD_SHARE = 1 / 3  # of a training step: an evaluation batch needs no backward pass
BYTES = 4  # of a float32 parameter
SMALL_FILES = 0.3e6  # bytes of a run folder beside the weights: predictions, history, ranks


@dataclasses.dataclass(frozen=True)
class Cost:
    """A training step: seconds, trained parameters, memory; measured or scaled by tokens."""

    seconds: float
    trainable: int
    peak_memory_mb: float
    measured: bool
    held_mb: float = 0.0  # of the memory, what does not grow with the batch


Key = tuple[str, str, int]
Costs = dict[Key, Cost]
# Columns of a plan, a line for each row of the table: how those of its runs are combined.
COLUMNS = {
    "runs": "sum", "done": "sum", "steps": "sum",
    "seconds": "sum",  # of all steps and evaluations
    "step_seconds": "sum",  # of all steps
    "disk_mb": "sum",
    "memory_mb": "max",
    "checkpoint_mb": "max",  # of a run in progress
    "measured": "all",
}  # fmt: skip


def key_of(job: Job) -> Key:
    """Return what a step's cost depends on: (row, task, most tokens in a batch)."""
    train = job.resolved.config.train
    return job.row, job.task, train.max_seq_length * train.batch_size


def measure(
    jobs: Sequence[Job],
    workers: int | None = None,
    budget: float = BUDGET,
    tell: Callable[[str], None] = print,
) -> tuple[Costs, bool]:
    """Measure what a step costs for each row, task and length, with the threads a worker will have.

    A few steps are taken of each, first of the shortest of every row. After ``budget`` seconds only
    rows without any measurement are still measured, after three times as long none: the rest is
    scaled by tokens, from the same row where possible. Ctrl-C ends the measuring like the budget,
    once there is something to scale from; returns the costs and whether that happened.
    """
    import torch

    from lora2.bench import step

    threads = int(plan_workers(jobs, workers)[0]["OMP_NUM_THREADS"]) if jobs else 1
    torch.set_num_threads(threads)
    if warning := busy_warning(threads):
        tell(warning)
    wanted = {key_of(job): job for job in jobs}
    costs: Costs = {}
    started, interrupted = time.monotonic(), False
    for key in _order(wanted):
        spent = time.monotonic() - started
        patience = budget if any(known[0] == key[0] for known in costs) else PATIENCE * budget
        if costs and spent > patience:
            continue
        resolved = wanted[key].resolved
        try:
            batches = step.batches(resolved.config, 3)
            runs = {key[0]: (resolved.config, resolved.steps or 10_000)}
            result = step.measure(runs, batches, rounds=3, warm_up=1)[key[0]]
        except KeyboardInterrupt:
            if not costs:
                raise
            interrupted = True
            tell("stopped measuring: the rest is scaled from what was measured")
            break
        memory, held = result.peak_memory_mb, result.held_memory_mb
        costs[key] = Cost(result.median, result.trainable, memory, True, held)
        size = f"{resolved.config.train.batch_size} x {result.tokens:.0f} tokens"
        tell(f"  {key[0]}, {key[1]}, {size}: {result.median:.3f} s/step")
    missing = wanted.keys() - costs.keys()
    sizes = {key: batch_tokens(job) for key, job in wanted.items()} if missing else {}
    return costs | {key: _scaled(key, costs, sizes) for key in missing}, interrupted


def busy_warning(threads: int) -> str | None:
    """Return a warning when more is running on this machine than it has cores."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load <= cores:
        return None
    meaning = "times below are this process's own; waiting for the others comes on top"
    if threads > 1 or gpu_count():
        meaning = "times below are longer than on a quiet machine"
    return f"this machine is busy, load {load:.1f} on {cores} cores: {meaning}"


def _order(wanted: Mapping[Key, Job]) -> list[Key]:
    """Return every row's shortest batch, then every row's next, and so on."""
    rows: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(wanted, key=lambda key: (key[2], key)):
        rows[key[0]].append(key)
    places = [(i, key[2], key) for keys in rows.values() for i, key in enumerate(keys)]
    return [key for *_, key in sorted(places)]


def batch_tokens(job: Job) -> float:
    """Return the tokens of a batch of the run, padding included, as a mean over some."""
    from lora2.bench import step

    drawn = step.batches(job.resolved.config, BATCHES)
    return statistics.mean(batch["input_ids"].numel() for batch in drawn)


def _scaled(key: Key, costs: Costs, sizes: Mapping[Key, float]) -> Cost:
    same_row = [known for known in costs if known[0] == key[0]] or list(costs)
    nearest = min(same_row, key=lambda known: abs(math.log(sizes[known] / sizes[key])))
    ratio, cost = sizes[key] / sizes[nearest], costs[nearest]
    memory = cost.held_mb + (cost.peak_memory_mb - cost.held_mb) * max(1.0, ratio)
    return Cost(cost.seconds * ratio, cost.trainable, memory, False, cost.held_mb)


def sum_up(jobs: Sequence[Job], costs: Costs, timed_steps: int = 0) -> pd.DataFrame:
    """Return a line with ``COLUMNS`` for each row: its runs, and what the unfinished ones cost.

    Of a table that is timed, each run takes ``timed_steps`` and leaves nothing behind.
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
            weights = cost.trainable * BYTES
            run["seconds"] += cost.seconds * evaluation_steps(config, steps)
            run["disk_mb"] = (weights + SMALL_FILES) / 2**20
            if config.train.save_steps is not None:  # weights and AdamW's two moments of them
                run["checkpoint_mb"] = 3 * weights / 2**20
        runs.append(run)
    frame = pd.DataFrame(runs, columns=["row", *COLUMNS])
    return frame.groupby("row", sort=False).agg(COLUMNS)


def evaluation_steps(config: RunConfig, steps: int) -> float:
    """Return a run's evaluations in training steps' worth of time."""
    if config.data.holdout is not None:
        rows = config.data.holdout
    elif config.data.source == "embedded":
        from lora2.embedded.grammar import ROWS

        rows = ROWS[config.task][1] * (2 if config.task == "mnli" else 1)
    else:
        sizes = TASKS[config.task].rows
        rows = sum(sizes[split] for split in TASKS[config.task].validation_splits)
    evaluations = math.ceil(steps / config.train.eval_steps)
    return evaluations * rows / config.train.batch_size * FORWARD_SHARE


def render(plan: pd.DataFrame, workers: int = 1) -> str:
    """Return the lines of ``sum_up`` as a text table, with what it rests on."""
    head = (
        f"{'row':<12}{'runs':>6}{'done':>6}{'steps':>12}{'s/step':>9}{'time':>11}"
        f"{'memory MiB':>12}{'disk MiB':>10}"
    )
    body = [
        f"{line.Index:<12}{line.runs:>6}{line.done:>6}{line.steps:>12,}"
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
        f"memory: weights, optimiser state and the most allocated in a step, on the "
        f"{'GPU' if gpu_count() else 'processor'}",
    ]
    if not plan["measured"].all():
        notes.append("~ not all measured at this size: scaled by tokens from what was")
    return "\n".join([head, *body, *notes])
