"""(a) The parts by themselves: regulariser, allocator, and the six matrices of one layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lora2.bench.counters import counting
from lora2.bench.encoders import twin
from lora2.bench.methods import METHODS, STEPS, Method, prepare
from lora2.bench.record import Row, counted, times
from lora2.bench.step import interleave, release

LAYERS = 12  # of six matrices: the 72 of DeBERTaV3-base
ADAPTED = ("lora-r8", "adalora-r8", "lora2-k1", "lora2-k8")
REGULARIZED = ADAPTED[1:]


class Matrices(nn.Module):
    """The linear maps of an encoder's layers under their usual names, and nothing between them.

    With ``x`` (..., width) it maps it through each matrix; without, it only has a loss, so that
    what a method adds to a loss stands alone.
    """

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        stack = nn.ModuleList(_layer(width) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layer": stack})
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor | None = None) -> SequenceClassifierOutput:
        if x is None:
            return SequenceClassifierOutput(loss=self.classifier.bias.sum())
        total = x.new_zeros(())
        for part in self.encoder["layer"]:
            attention, wide = part["attention"]["self"], part["intermediate"]["dense"](x)
            outs = [attention[name](x) for name in ("query", "key", "value")]
            outs += [part["attention"]["output"]["dense"](x), part["output"]["dense"](wide)]
            total = total + torch.stack(outs).sum()  # 5 x (..., width) -> scalar
        return SequenceClassifierOutput(logits=total)


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


Action = Callable[[int], object]


def regulariser(base: Matrices, method: Method) -> Action:
    """Return the forward and backward pass of what ``method`` adds to a loss.

    Gradients are there already, as they are after the backward pass of the loss itself.
    """
    model, _ = prepare(twin(base), method)
    _fill_gradients(model.train())
    return lambda _: model.base_model().loss.backward()


def allocator(base: Matrices, method: Method) -> Action:
    """Return a step of ``method``'s allocator: scores and masks."""
    model, driver = prepare(twin(base), method)
    model.train().base_model()  # a loss with the regulariser in it, as allocators expect
    _fill_gradients(model)
    driver.prepare_training(STEPS)
    return lambda number: driver.after_optimizer_step(number + 1)


def adapted_layer(base: Matrices, method: Method | None, x: Tensor) -> Action:
    """Return the forward and backward pass of the matrices; ``method`` None: without an adapter."""
    plain = twin(base).requires_grad_(False)
    model = plain if method is None else prepare(plain, method)[0].train().base_model

    def action(_: int) -> None:
        model(x).logits.backward()
        model.zero_grad()
        x.grad = None

    return action


def _fill_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)


def measure(
    device: str, width: int, layers: int, batch: int, tokens: int, rounds: int, warm_up: int
) -> list[Row]:
    """Return a row for each part and method."""
    base = Matrices(layers, width).to(device)
    single = Matrices(1, width).to(device)
    x = torch.randn(batch, tokens, width, device=device, requires_grad=True)
    parts: dict[str, tuple[int, dict[str, Action]]] = {
        "regulariser": (6 * layers, {row: regulariser(base, METHODS[row]) for row in REGULARIZED}),
        "allocator": (6 * layers, {row: allocator(base, METHODS[row]) for row in REGULARIZED}),
        "layer": (6, {row: adapted_layer(single, METHODS[row], x) for row in ADAPTED}),
    }
    parts["layer"][1]["base"] = adapted_layer(single, None, x)
    rows: list[Row] = []
    for part, (matrices, actions) in parts.items():
        seconds = interleave(actions, rounds, warm_up)
        bases = {"lora": seconds.get("lora-r8"), "adalora": seconds.get("adalora-r8")}
        for row, action in actions.items():
            with counting(device) as counts:
                action(warm_up + rounds)
            label = METHODS[row].label if row in METHODS else "no adapter"
            shape: Row = {"part": part, "row": row, "label": label, "matrices": matrices}
            shape |= {"width": width, "batch": batch, "tokens": tokens}
            rows.append({**shape, **times(seconds[row], bases), **counted(counts)})
    release()
    return rows
