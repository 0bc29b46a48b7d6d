"""(c) Table 2: a step of each method on batches as long as each GLUE task's sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lora2.bench.encoders import longest
from lora2.bench.lengths import Lengths, draw
from lora2.bench.methods import METHODS
from lora2.bench.record import Row, times
from lora2.bench.shape import SEED, Shape
from lora2.bench.step import Batch, build, release, take_turns
from lora2.bench.steps import bases, held, named


def batches(shape: Shape, lengths: Lengths, count: int) -> list[Batch]:
    """Return ``count`` batches of lengths drawn from a task's, each padded to its longest."""
    generator = torch.Generator().manual_seed(SEED)
    most = longest(shape.config(), lengths.max_seq_length)
    drawn = [draw(lengths, shape.batch, generator).clamp(max=most) for _ in range(count)]
    return [shape.batch_of(one, generator) for one in drawn]


def measure(
    shape: Shape,
    methods: Sequence[str],
    tasks: Mapping[str, Lengths],
    count: int,
    rounds: int,
    warm_up: int,
    tell: Callable[[str], None] = print,
) -> list[Row]:
    """Return a row for each task and method; in a round all methods step on the same batch.

    ``count`` batches are drawn for a task and taken in turn. ``tokens`` in a row is the mean
    padded length of its batches.
    """
    base = shape.base()
    steppers = {row: build(base, METHODS[row], shape.precision) for row in methods}
    rows: list[Row] = []
    for task, lengths in tasks.items():
        own = batches(shape, lengths, count)
        padded = [batch["input_ids"].shape[1] for batch in own]
        tell(f"  {task}: {min(padded)} to {max(padded)} tokens")
        seconds = take_turns(steppers, own, rounds, warm_up)
        widest = own[padded.index(max(padded))]
        where = {"task": task, **shape.columns(), "tokens": sum(padded) / count}
        sizes = held(steppers, widest)
        for row in steppers:
            measured = times(seconds[row], bases(seconds))
            rows.append({**where, **named(METHODS[row]), **measured, **sizes[row]})
        release()
    return rows
