"""(b) One training step of every method at an encoder's size, and inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lora2.bench.counters import counting
from lora2.bench.encoders import twin
from lora2.bench.methods import METHODS, Method, prepare
from lora2.bench.record import Row, counted, times
from lora2.bench.shape import Shape
from lora2.bench.step import (
    Batch,
    Seconds,
    Stepper,
    autocast,
    build,
    held_bytes,
    interleave,
    release,
    take_turns,
)

SERVED = "lora2-k8"  # the adapter of the inference rows
INFERENCE_ROUNDS = 4  # to one of training: shorter, and of times that lie closer together


def measure(shape: Shape, methods: Sequence[str], rounds: int, warm_up: int) -> list[Row]:
    """Return a row for each method's training step, and three for inference."""
    base, batch = shape.base(), shape.full_batch()
    rows = training(shape, base, batch, methods, rounds, warm_up)
    release()
    rows += inference(shape, base, batch, INFERENCE_ROUNDS * rounds, warm_up)
    del base
    release()
    return rows


def training(
    shape: Shape,
    base: nn.Module,
    batch: Batch,
    methods: Sequence[str],
    rounds: int,
    warm_up: int,
) -> list[Row]:
    """Return a row for each method, which took a step in turn with the others."""
    steppers = {row: build(base, METHODS[row], shape.precision) for row in methods}
    seconds = take_turns(steppers, [batch], rounds, warm_up)
    where = {"phase": "train", **shape.columns(), "tokens": batch["input_ids"].shape[1]}
    sizes = held(steppers, batch)
    return [
        {
            **where,
            **named(METHODS[row]),
            **times(seconds[row], bases(seconds)),
            **counted(stepper.counts(batch)),
            **sizes[row],
        }
        for row, stepper in steppers.items()
    ]


def named(method: Method) -> Row:
    """Return the columns that name a method."""
    columns: Row = {"row": method.row, "label": method.label, "method": method.name}
    return {**columns, "r": method.r, "k": method.k if method.name == "lora2" else ""}


def bases(seconds: Seconds) -> Mapping[str, list[float] | None]:
    """Return what training steps are compared with."""
    return {"lora": seconds.get("lora-r8"), "adalora": seconds.get("adalora-r8"), "base": None}


def held(steppers: Mapping[str, Stepper], batch: Batch) -> dict[str, Row]:
    """Return each method's columns of size: parameters trained, and memory.

    ``memory_mib`` is the peak of a step, ``held_mib`` what of it does not grow with the batch:
    weights and optimiser state.
    """
    memory = {row: one.memory_mib(batch) for row, one in steppers.items()}
    lora = memory.get("lora-r8")
    return {
        row: {
            "trainable": one.trainable(),
            "memory_mib": memory[row],
            "held_mib": held_bytes(one) / 2**20,
            "memory_ratio_to_lora": "" if lora is None else memory[row] / lora,
        }
        for row, one in steppers.items()
    }


def inference(shape: Shape, base: nn.Module, batch: Batch, rounds: int, warm_up: int) -> list[Row]:
    """Return rows for a forward pass without gradients: no adapter, one merged, one beside."""
    beside = prepare(twin(base), METHODS[SERVED])[0]
    merged = prepare(copy.deepcopy(base), METHODS[SERVED])[0].merge_and_unload()
    models = {"base": base, "merged": merged, "unmerged": beside}
    actions = {name: _forward(model, batch, shape) for name, model in models.items()}
    seconds = interleave(actions, shape.device, rounds, warm_up)
    where = {"phase": "inference", **shape.columns(), "tokens": batch["input_ids"].shape[1]}
    rows = []
    for name, action in actions.items():
        with counting(shape.device) as counts:
            action(0)
        label = f"{METHODS[SERVED].label}, {name}" if name != "base" else "no adapter"
        same = {"lora": None, "adalora": None, "base": seconds["base"]}
        named_so = {"row": name, "label": label, "method": "", "r": "", "k": ""}
        size = dict.fromkeys(("trainable", "memory_mib", "held_mib", "memory_ratio_to_lora"), "")
        rows.append({**where, **named_so, **times(seconds[name], same), **counted(counts), **size})
    return rows


def _forward(model: nn.Module, batch: Batch, shape: Shape) -> Callable[[int], object]:
    model.eval()
    inputs = {key: value for key, value in batch.items() if key != "labels"}

    def action(_: int) -> object:
        with torch.no_grad(), autocast(shape.device, shape.precision):
            return model(**inputs).logits

    return action
