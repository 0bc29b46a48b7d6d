"""(d) What more layers, a larger k and a larger r cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lora2.bench.methods import METHODS, Method
from lora2.bench.micro import REGULARIZED, Matrices, allocator, cost, regulariser
from lora2.bench.record import Row, counted, times
from lora2.bench.shape import Shape
from lora2.bench.step import build, release, take_turns
from lora2.bench.steps import bases, named

REFERENCE = METHODS["lora-r8"]
COMPARED = (REFERENCE, *(METHODS[row] for row in REGULARIZED))


def over_layers(shape: Shape, depths: Sequence[int], rounds: int, warm_up: int) -> list[Row]:
    """Return rows for several depths: a step, and the regulariser and allocator by themselves."""
    rows: list[Row] = []
    for depth in depths:
        at = dataclasses.replace(shape, layers=depth)
        rows += _step_rows(at, "layers", [(depth, one) for one in COMPARED], rounds, warm_up)
        rows += _part_rows(at, depth, rounds, warm_up)
    return rows


def over_ranks(shape: Shape, values: Sequence[int], rounds: int, warm_up: int) -> list[Row]:
    """Return rows for a step of LoRA2 over k (r = 8) and over r (k = 8), and of LoRA over r."""
    by_k = [(k, Method(f"lora2-k{k}", f"LoRA² k={k}", "lora2", k=k)) for k in values]
    by_r = [(r, Method(f"lora2-r{r}", f"LoRA² k=8 r={r}", "lora2", r=r)) for r in values]
    by_r += [(r, Method(f"lora-r{r}", f"LoRA r={r}", "lora", r=r)) for r in values]
    rows: list[Row] = []
    for axis, points in (("k", by_k), ("r", by_r)):
        if REFERENCE.row not in {method.row for _, method in points}:
            points = [(REFERENCE.r, REFERENCE), *points]
        rows += _step_rows(shape, axis, points, rounds, warm_up)
    return rows


def _step_rows(
    shape: Shape, axis: str, points: Iterable[tuple[int, Method]], rounds: int, warm_up: int
) -> list[Row]:
    """Return a row for each (value on the axis, method), all interleaved."""
    points, base, batch = list(points), shape.base(), shape.full_batch()
    steppers = {method.row: build(base, method, shape.precision) for _, method in points}
    seconds = take_turns(steppers, [batch], rounds, warm_up)
    rows = []
    for value, method in points:
        counts = steppers[method.row].counts(batch)
        where = _where(shape, axis, value, "step", batch["input_ids"].shape[1])
        measured = times(seconds[method.row], bases(seconds))
        rows.append({**where, **named(method), **measured, **counted(counts)})
    del steppers, base
    release()
    return rows


def _part_rows(shape: Shape, depth: int, rounds: int, warm_up: int) -> list[Row]:
    """Return rows for the regulariser and the allocator over the matrices of ``depth`` layers."""
    base = Matrices(depth, shape.config().hidden_size).to(shape.device)
    rows = []
    for what, part in (("regulariser", regulariser), ("allocator", allocator)):
        parts = {row: part(base, METHODS[row], shape.precision) for row in REGULARIZED}
        found = cost(parts, shape.device, rounds, warm_up)
        where = {**_where(shape, "layers", depth, what, ""), "batch": ""}
        rows += [{**where, **named(METHODS[row]), **found[row]} for row in REGULARIZED]
    release()
    return rows


def _where(shape: Shape, axis: str, value: int, what: str, tokens: object) -> Row:
    return {"axis": axis, "value": value, "what": what, **shape.columns(), "tokens": tokens}
