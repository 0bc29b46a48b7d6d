"""(a) The parts by themselves: regulariser, allocator, and the six matrices of one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lora2.bench.counters import counting
from lora2.bench.encoders import twin
from lora2.bench.methods import METHODS, STEPS, Method, prepare
from lora2.bench.record import Row, counted, times
from lora2.bench.shape import Shape
from lora2.bench.step import autocast, interleave, release

DEPTHS = (12, 24)  # layers of six matrices: DeBERTaV3-base's, and twice as many
ADAPTED = ("lora-r8", "adalora-r8", "lora2-k1", "lora2-k8")
REGULARIZED = ADAPTED[1:]
Action = Callable[[int], object]


class Matrices(nn.Module):
    """The linear maps of an encoder's layers under their usual names, and nothing between them.

    Maps ``x`` (..., width) through each matrix to a scalar: ``logits``, and with ``labels`` also
    ``loss``, the output that a method adds its regulariser to. All layers use the memory of one:
    what their frozen weights are is of no interest.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        first = _layer(width)
        stack = nn.ModuleList([first, *(twin(first) for _ in range(layers - 1))])
        self.encoder = nn.ModuleDict({"layer": stack})
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor, labels: object = None) -> SequenceClassifierOutput:
        total = x.new_zeros(())
        for part in self.encoder["layer"]:
            attention, wide = part["attention"]["self"], part["intermediate"]["dense"](x)
            outs = [attention[name](x) for name in ("query", "key", "value")]
            outs += [part["attention"]["output"]["dense"](x), part["output"]["dense"](wide)]
            total = total + torch.stack(outs).sum()  # 5 x (..., width) -> scalar
        return SequenceClassifierOutput(loss=None if labels is None else total, logits=total)


def _layer(width: int) -> nn.ModuleDict:
    square = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
    attention = {
        "self": nn.ModuleDict(square),
        "output": nn.ModuleDict({"dense": nn.Linear(width, width)}),
    }
    return nn.ModuleDict(
        {
            "attention": nn.ModuleDict(attention),
            "intermediate": nn.ModuleDict({"dense": nn.Linear(width, 4 * width)}),
            "output": nn.ModuleDict({"dense": nn.Linear(4 * width, width)}),
        }
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """What is measured: ``action``, less ``without`` where the part cannot stand alone."""

    action: Action
    without: Action | None = None


def regulariser(base: Matrices, method: Method, precision: str = "fp32") -> Part:
    """Return a forward and backward pass with what ``method`` adds to a loss, and one without.

    The forward pass is in ``precision``, as a training step's.

    One row of one token, so that as little as possible is taken away again. The difference is what
    a training step pays, whatever the regulariser shares with the pass through the matrices.
    """
    model = prepare(twin(base), method)[0].train().base_model
    x = _one_token(base)

    def with_it(_: int) -> None:
        with autocast(x.device.type, precision):
            loss = model(x, labels=True).loss
        loss.backward()
        model.zero_grad()

    def without(_: int) -> None:
        with autocast(x.device.type, precision):
            total = model(x).logits
        total.backward()
        model.zero_grad()

    return Part(with_it, without)


def allocator(base: Matrices, method: Method, precision: str = "fp32") -> Part:
    """Return a step of ``method``'s allocator: scores and masks.

    Only the forward pass before it is in ``precision``: in a training step too the allocator works
    on float32 parameters and gradients, outside autocast.
    """
    model, driver = prepare(twin(base), method)
    # A loss with the regulariser in it, as allocators expect.
    x = _one_token(base)
    with autocast(x.device.type, precision):
        model.train().base_model(x, labels=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    driver.prepare_training(STEPS)
    return Part(lambda number: driver.after_optimizer_step(number + 1))


def adapted_layer(
    base: Matrices, method: Method | None, x: Tensor, precision: str = "fp32"
) -> Part:
    """Return the forward and backward pass of the matrices; ``method`` None: without an adapter."""
    plain = twin(base).requires_grad_(False)
    model = plain if method is None else prepare(plain, method)[0].train().base_model

    def action(_: int) -> None:
        with autocast(x.device.type, precision):
            total = model(x).logits
        total.backward()
        model.zero_grad()
        x.grad = None

    return Part(action)


def _one_token(base: Matrices) -> Tensor:
    weight = base.classifier.weight
    return weight.new_ones(1, 1, weight.shape[1])


def cost(parts: Mapping[str, Part], device: str, rounds: int, warm_up: int) -> dict[str, Row]:
    """Return the timing and counting columns of each part, all measured in turn.

    What is measured by difference has the differences of each round; where the machine's noise is
    larger they may be below 0.
    """
    # All of them, then all without: each then follows another method, and finds the caches so.
    actions = {row: part.action for row, part in parts.items()}
    actions |= {_without(row): part.without for row, part in parts.items() if part.without}
    seconds = interleave(actions, device, rounds, warm_up)
    numbers = {name: _numbers(one, device, warm_up + rounds) for name, one in actions.items()}
    for row in [row for row in parts if _without(row) in actions]:
        less, fewer = seconds.pop(_without(row)), numbers.pop(_without(row))
        seconds[row] = [a - b for a, b in zip(seconds[row], less, strict=True)]
        numbers[row] = {name: numbers[row][name] - fewer[name] for name in fewer}
    bases = {"lora": seconds.get("lora-r8"), "adalora": seconds.get("adalora-r8")}
    alone = not any(part.without for part in parts.values())
    return {row: {**times(seconds[row], bases, by_round=alone), **numbers[row]} for row in parts}


def _without(row: str) -> str:
    return f"{row}, without"


def _numbers(action: Action, device: str, number: int) -> dict[str, int]:
    with counting(device) as counts:
        action(number)
    return counted(counts)


def measure(shape: Shape, depths: Sequence[int], rounds: int, warm_up: int) -> list[Row]:
    """Return a row for each part and method; regulariser and allocator at each of ``depths``.

    Of ``shape`` the encoder's width, the batch, its tokens, precision and device count.
    """
    width, device, precision = shape.config().hidden_size, shape.device, shape.precision
    single = Matrices(1, width).to(device)
    x = torch.randn(shape.batch, shape.tokens, width, device=device, requires_grad=True)
    layer = {row: adapted_layer(single, METHODS[row], x, precision) for row in ADAPTED}
    layer["base"] = adapted_layer(single, None, x, precision)
    rows: list[Row] = []
    for depth in depths:
        base = Matrices(depth, width).to(device)
        for name, part in (("regulariser", regulariser), ("allocator", allocator)):
            own = {row: part(base, METHODS[row], precision) for row in REGULARIZED}
            where = {**_where(shape, name, 6 * depth), "batch": "", "tokens": ""}
            rows += _rows(where, own, device, rounds, warm_up)
            release()
    where = {**_where(shape, "layer", 6), "batch": shape.batch, "tokens": shape.tokens}
    return rows + _rows(where, layer, device, rounds, warm_up)


def _where(shape: Shape, part: str, matrices: int) -> Row:
    width, precision = shape.config().hidden_size, shape.precision
    return {"part": part, "matrices": matrices, "width": width, "precision": precision}


def _rows(
    where: Row, parts: Mapping[str, Part], device: str, rounds: int, warm_up: int
) -> list[Row]:
    found = cost(parts, device, rounds, warm_up)
    label = {row: METHODS[row].label if row in METHODS else "no adapter" for row in parts}
    return [{**where, "row": row, "label": label[row], **found[row]} for row in parts]
