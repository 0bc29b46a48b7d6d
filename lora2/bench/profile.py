"""(e) Where the time of one training step goes: its parts and its dearest operations."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from lora2.bench.methods import METHODS
from lora2.bench.record import Row
from lora2.bench.shape import Shape
from lora2.bench.step import Stepper, build, release, settle
from lora2.bench.steps import named

PROFILED = ("lora-r8", "lora2-k8")
TOP = 15  # operations named; the others are summed up
REST = "rest"  # clipping, and gradients put in their place
PARTS = ("encoder", "adapter", "regulariser", "allocator", "optimiser", REST)
LABEL = "bench: "
Times = dict[tuple[str, str], tuple[int, float]]  # (kind, name) -> (calls, seconds)
BACKWARD = "autograd::engine::evaluate_function"


def measure(shape: Shape, rounds: int, warm_up: int) -> list[Row]:
    """Return rows of each method's parts and dearest operations in a step, medians over ``rounds``.

    Seconds are a part's or operation's own: of the kernels on a GPU, of the operations on a
    processor, the profiler's cost in them. Their ratio to the whole step of LoRA is what may be
    compared. Calls are of ATen operations, views and those inside others included.
    """
    base, batch = shape.base(), shape.full_batch()
    steppers = {row: build(base, METHODS[row], shape.precision) for row in PROFILED}
    seen: dict[str, list[Times]] = {row: [] for row in PROFILED}
    for stepper in steppers.values():
        label_parts(stepper)
        for _ in range(warm_up):
            stepper.step(batch)
    for _ in range(rounds):
        for row, stepper in steppers.items():
            seen[row].append(summed(events(lambda one=stepper: one.step(batch), shape.device)))
    found = {row: _medians(own) for row, own in seen.items()}
    whole = {row: _whole(own) for row, own in found.items()}
    where = {**shape.columns(), "tokens": batch["input_ids"].shape[1], "rounds": rounds}
    del steppers, base
    release()
    return [
        {
            **where,
            **named(METHODS[row]),
            "kind": kind,
            "name": name,
            "calls": calls,
            "seconds": seconds,
            "share": seconds / whole[row],
            "ratio_to_lora": seconds / whole["lora-r8"],
        }
        for row, own in found.items()
        for (kind, name), (calls, seconds) in _dearest(own)
    ]


def label_parts(stepper: Stepper) -> None:
    """Have the profiler see which part of a step an operation belongs to."""
    model, driver = stepper.model, stepper.driver
    _label(model, "forward", "adapter")  # what of it is nobody's: factors gathered for all layers
    _label(model.base_model.model, "forward", "encoder")
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer) and not isinstance(layer, nn.ModuleDict):
            _label(layer, "forward", "adapter")
            _label(layer.get_base_layer(), "forward", "encoder")
    if hasattr(model.base_model, "regularization_loss"):
        _label(model.base_model, "regularization_loss", "regulariser")
    if driver is not None:
        _label(driver, "after_optimizer_step", "allocator")
    _label(stepper.optimizer, "step", "optimiser")


def _label(owner: Any, method: str, part: str) -> None:
    inner = getattr(owner, method)

    def labelled(*args: Any, **kwargs: Any) -> Any:
        with record_function(LABEL + part):
            return inner(*args, **kwargs)

    setattr(owner, method, labelled)


def events(action: Callable[[], object], device: str) -> list[FunctionEvent]:
    """Return what the profiler saw the host do in ``action``."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device == "cuda" else []
    with profile(activities=activities) as profiler:
        action()
        settle()
    return [event for event in profiler.events() if event.device_type.name == "CPU"]


def summed(seen: Sequence[FunctionEvent]) -> Times:
    """Return calls and own seconds of each ``part`` and ``operation``."""
    on_gpu = any(event.self_device_time_total for event in seen)
    forward = forward_parts(seen)
    found: Times = collections.defaultdict(lambda: (0, 0.0))
    for event in seen:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        names = [("part", part_of(event, forward))]
        if event.name.startswith("aten::"):
            names.append(("operation", event.name))
        for name in names:
            calls, seconds = found[name]
            found[name] = calls + event.name.startswith("aten::"), seconds + spent / 1e6
    return dict(found)


def forward_parts(seen: Iterable[FunctionEvent]) -> dict[int, str]:
    """Return the number of each operation in the autograd graph -> the part it belongs to."""
    return {
        event.sequence_nr: part_of(event, {})
        for event in seen
        if event.sequence_nr >= 0 and not any(_is_backward(one) for one in _upwards(event))
    }


def part_of(event: FunctionEvent, forward: dict[int, str]) -> str:
    """Return the part of a step that ``event`` belongs to; in a backward pass, its forward's."""
    for one in _upwards(event):
        if one.name.startswith(LABEL):
            return one.name.removeprefix(LABEL)
        if _is_backward(one):
            return forward.get(one.sequence_nr, REST)
    return REST


def _upwards(event: FunctionEvent) -> Iterator[FunctionEvent]:
    one: FunctionEvent | None = event
    while one is not None:
        yield one
        one = one.cpu_parent


def _is_backward(event: FunctionEvent) -> bool:
    return event.name.startswith(BACKWARD)


def _medians(seen: Sequence[Times]) -> Times:
    nothing = (0, 0.0)
    found: Times = {}
    for name in dict.fromkeys(name for one in seen for name in one):
        calls, seconds = zip(*(one.get(name, nothing) for one in seen), strict=True)
        found[name] = int(statistics.median(calls)), statistics.median(seconds)
    return found


def _whole(found: Times) -> float:
    return sum(seconds for (kind, _), (_, seconds) in found.items() if kind == "part")


def _dearest(found: Times) -> Iterator[tuple[tuple[str, str], tuple[int, float]]]:
    """Yield the parts in their order, then the ``TOP`` operations, then the others as one."""
    for part in PARTS:
        if ("part", part) in found:
            yield ("part", part), found["part", part]
    operations = [item for item in found.items() if item[0][0] == "operation"]
    operations.sort(key=lambda item: -item[1][1])
    yield from operations[:TOP]
    calls, seconds = zip(*(value for _, value in operations[TOP:]), strict=True)
    yield ("operation", "others"), (sum(calls), sum(seconds))
