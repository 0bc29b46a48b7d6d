"""What a table would cost on this machine: steps, time, memory, disk. Trains nothing."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from lora2.config.schema import RunConfig
from lora2.glue.tasks import TASKS
from lora2.records.paths import status_of
from lora2.sweep.pool import duration
from lora2.sweep.presets import gpu_count
from lora2.sweep.table import Job

BUDGET = 120.0  # seconds of measuring; what is left then is scaled from what was measured
PATIENCE = 3.0  # times the budget, for rows of which nothing is measured yet
BATCHES = 8  # over which a run's padded length is averaged
FORWARD_SHARE = 1 / 3  # of a training step: an evaluation batch needs no backward pass
BYTES = 4  # of a float32 parameter
SMALL_FILES = 0.3e6  # bytes of a run folder beside the weights: predictions, history, ranks


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one training step: seconds, parameters trained, memory; measured or scaled by tokens."""

    seconds: float
    trainable: int
    peak_memory_mb: float
    measured: bool
    held_mb: float = 0.0  # of the memory, what does not grow with the batch


Key = tuple[str, str, int]
Costs = dict[Key, Cost]


@dataclasses.dataclass
class Line:
    """One row of the table: its runs, what is done, and what is left to do."""

    row: str
    runs: int = 0
    done: int = 0
    steps: int = 0
    hours: float = 0.0
    seconds_per_step: float = 0.0  # mean over what is left
    memory_mb: float = 0.0
    disk_mb: float = 0.0
    measured: bool = True


def key_of(job: Job) -> Key:
    """Return what a step's cost hangs on: (row, task, tokens at most in a batch)."""
    train = job.resolved.config.train
    return job.row, job.task, train.max_seq_length * train.batch_size


def lines(jobs: Sequence[Job], costs: Costs) -> list[Line]:
    """Sum up the runs of each row.

    Hours are of one run after another, evaluations included; finished runs cost nothing.
    """
    found: dict[str, Line] = {}
    for job in jobs:
        config, steps = job.resolved.config, job.resolved.steps or 0
        line = found.setdefault(job.row, Line(job.row))
        line.runs += 1
        if status_of(config) == "finished":
            line.done += 1
            continue
        cost = costs[key_of(job)]
        line.steps += steps
        line.hours += cost.seconds * (steps + evaluation_steps(config, steps)) / 3600
        line.seconds_per_step += cost.seconds * steps
        line.memory_mb = max(line.memory_mb, cost.peak_memory_mb)
        line.disk_mb += (cost.trainable * BYTES + SMALL_FILES) / 2**20
        line.measured = line.measured and cost.measured
    for line in found.values():
        line.seconds_per_step /= max(1, line.steps)
    return list(found.values())


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


def timing_lines(jobs: Sequence[Job], costs: Costs, steps: int) -> list[Line]:
    """Sum up each row of a table that is timed: ``steps`` of every task, nothing kept."""
    found: dict[str, Line] = {}
    for job in jobs:
        cost, line = costs[key_of(job)], found.setdefault(job.row, Line(job.row))
        line.runs, line.steps = line.runs + 1, line.steps + steps
        line.hours += cost.seconds * steps / 3600
        line.memory_mb = max(line.memory_mb, cost.peak_memory_mb)
        line.measured = line.measured and cost.measured
    for line in found.values():
        line.seconds_per_step = 3600 * line.hours / line.steps
    return list(found.values())


def measure(
    jobs: Sequence[Job], budget: float = BUDGET, tell: Callable[[str], None] = print
) -> Costs:
    """Measure what a step costs for each row, task and length that is left to do.

    A few steps are taken of each, first of the shortest of every row. After ``budget`` seconds only
    rows without any measurement are still measured, after three times as long none: the rest is
    scaled by tokens, from the same row where possible.
    """
    from lora2.bench import lengths, step

    wanted = {key_of(job): job for job in jobs}
    costs: Costs = {}
    started = time.monotonic()
    for key in _order(wanted):
        spent = time.monotonic() - started
        patience = budget if any(known[0] == key[0] for known in costs) else PATIENCE * budget
        if costs and spent > patience:
            continue
        resolved = wanted[key].resolved
        runs = {key[0]: (resolved.config, resolved.steps or 10_000)}
        batches = lengths.batches(resolved.config, 3)
        found = step.measure(runs, batches, rounds=3, warm_up=1)[key[0]]
        costs[key] = Cost(
            found.median, found.trainable, found.peak_memory_mb, True, found.held_memory_mb
        )
        size = resolved.config.train.batch_size
        tell(f"  {key[0]}, {key[1]}, {size} x {found.tokens:.0f} tokens: {found.median:.3f} s/step")
    missing = wanted.keys() - costs.keys()
    sizes = {key: batch_tokens(job) for key, job in wanted.items()} if missing else {}
    return costs | {key: _scaled(key, costs, sizes) for key in missing}


def _order(keys: Iterable[Key]) -> list[Key]:
    """Return every row's shortest batch, then every row's next, and so on."""
    places: Counter[str] = Counter()
    order: list[tuple[int, int, Key]] = []
    for key in sorted(keys, key=lambda key: (key[2], key)):
        order.append((places[key[0]], key[2], key))
        places[key[0]] += 1
    return [key for *_, key in sorted(order)]


def batch_tokens(job: Job) -> float:
    """Return the tokens of a batch of the run, padding included, as a mean over some."""
    from lora2.bench import lengths

    drawn = lengths.batches(job.resolved.config, BATCHES)
    return statistics.mean(batch["input_ids"].numel() for batch in drawn)


def _scaled(key: Key, costs: Costs, sizes: Mapping[Key, float]) -> Cost:
    own = [known for known in costs if known[0] == key[0]] or list(costs)
    nearest = min(own, key=lambda known: abs(math.log(sizes[known] / sizes[key])))
    ratio, cost = sizes[key] / sizes[nearest], costs[nearest]
    memory = cost.held_mb + (cost.peak_memory_mb - cost.held_mb) * max(1.0, ratio)
    return Cost(cost.seconds * ratio, cost.trainable, memory, False, cost.held_mb)


def render(found: Sequence[Line], distinct_runs: int, checkpoints_mb: float) -> str:
    """Return the plan as a text table with what it rests on."""
    head = (
        f"{'row':<12}{'runs':>6}{'done':>6}{'steps':>12}{'s/step':>9}{'time':>11}"
        f"{'memory MiB':>12}{'disk MiB':>10}"
    )
    body = [
        f"{one.row:<12}{one.runs:>6}{one.done:>6}{one.steps:>12,}{one.seconds_per_step:>9.3f}"
        f"{duration(3600 * one.hours):>11}{one.memory_mb:>12,.0f}{one.disk_mb:>10,.1f}"
        f"{'' if one.measured else '  ~'}"
        for one in found
    ]
    hours, disk = sum(one.hours for one in found), sum(one.disk_mb for one in found)
    left = sum(one.runs - one.done for one in found)
    device = "GPU" if gpu_count() else "processor"
    notes = [
        f"{left} of {distinct_runs} runs to do, {sum(one.steps for one in found):,} steps: "
        f"{duration(3600 * hours)} one after another, evaluations included",
        f"disk: {disk:,.0f} MiB of results, and up to {checkpoints_mb:,.0f} MiB of checkpoints "
        "for each run in progress",
        f"memory: weights, optimiser state and the most made in a step, on the {device}",
    ]
    if not all(one.measured for one in found):
        notes.append("~ not all measured at this size: scaled by tokens from what was")
    return "\n".join([head, *body, *notes])


def checkpoint_mb(jobs: Sequence[Job], costs: Costs) -> float:
    """Return the largest checkpoint in MiB: what is trained, and AdamW's two moments of it."""
    sizes = [
        3 * BYTES * costs[key_of(job)].trainable / 2**20
        for job in jobs
        if job.resolved.config.train.save_steps is not None
    ]
    return max(sizes, default=0.0)
