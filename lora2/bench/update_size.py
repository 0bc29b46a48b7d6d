"""Measure how far a method's first steps move a model's weights, beside LoRA's."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.adalora import SVDLinear
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import Conv1D

from lora2.bench.step import Batch, Stepper
from lora2.tuners.base import in_head
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora_xs import LoraXsLinear
from lora2.tuners.sora import SoraLinear

# What their get_delta_weight returns is added to the base weight. OFT's, say, is a rotation.
_ADDING = (LoraLinear, SVDLinear, Lora2Linear, LoraXsLinear, SoraLinear)
_NEAR_EPS = 100  # Adam's first step is lr g / (|g| + eps): below, eps takes 1 % of it and more
Weights = dict[str, tuple[Tensor, int]]  # and d_out, 0 where it is no linear map's


@dataclasses.dataclass(frozen=True)
class Update:
    """Hold ||dW||_F of one weight."""

    name: str
    first: float  # after the first step
    last: float  # after all steps
    lora: float  # after LoRA's first step; nan where the weight is no linear map's (a bias)

    @property
    def factor(self) -> float:
        """Return the factor of lr, or alpha, that makes the first step as large as LoRA's."""
        return self.lora / self.first if self.first else math.inf


@dataclasses.dataclass(frozen=True)
class UpdateSizes:
    """Hold what ``update_sizes`` measured."""

    updates: list[Update]
    gradients: dict[str, float]  # parameter -> rms of the first gradient that the optimiser gets
    lr: float
    eps: float  # Adam's

    @property
    def total(self) -> Update:
        """Return all weights as one; only linear maps where there are any, as LoRA's are."""
        linear = [update for update in self.updates if not math.isnan(update.lora)]
        rows = [(update.first, update.last, update.lora) for update in linear or self.updates]
        columns = zip(*rows, strict=True)
        return Update("in all", *(math.hypot(*column) for column in columns))

    @property
    def near_eps(self) -> list[str]:
        """Return parameters whose first gradient is so small, not zero, that eps shortens it."""
        return [name for name, rms in self.gradients.items() if 0 < rms < _NEAR_EPS * self.eps]


def update_sizes(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    steps: int = 10,
    *,
    head: Sequence[str] = (),
    driver: Any = None,
    total_step: int | None = None,
    max_grad_norm: float | None = 1.0,
) -> UpdateSizes:
    """Take ``steps`` training steps without warmup, measure the first and all, and undo them.

    LoRA's first step is ||dW||_F = s lr sqrt(r d_out / 3): Adam moves each of the d_out r entries
    of B = 0 by lr, and a row of A, kaiming-uniform, has the squared norm 1/3. s = alpha / r; both
    are those of the model's PEFT config, or 16 and 8. LoRA2 is set beside the rank min(k, r).

    Args:
        model: any PEFT model, or one that is trained itself; returns a loss for a batch.
        optimizer: of ``model``. Its default rate is that of LoRA's step.
        batches: on the model's device; taken in turn.
        steps: how many steps ``Update.last`` is after.
        head: modules that every method trains in full. They, and modules_to_save, are left out.
        driver: an object with the hooks of ``lora2.callbacks``. It alone has seen the steps
            afterwards: a training must call its prepare_training. None leaves allocators out,
            and tuners that have one warn of it.
        total_step: optimiser steps of the training that ``driver`` is told; None: ``steps``.
        max_grad_norm: of the clipping; None clips nothing.

    Raises:
        TypeError: naming a layer or a method that does not come down to a change of weights.
    """
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise TypeError(f"{config.peft_type.value} changes no weight: it has no update to measure")
    gradients, skipped = dict[str, float](), ("modules_to_save", *head)

    def record(*_: Any) -> None:
        for name, p in model.named_parameters():
            if p.grad is not None and not in_head(name, skipped):
                gradients.setdefault(name, float(p.grad.square().mean().sqrt()))

    with _undone(model, optimizer):
        start, total = _weights(model, skipped), total_step or steps
        stepper = Stepper(model, driver, optimizer, total, max_grad_norm=max_grad_norm)
        with optimizer.register_step_pre_hook(record):
            stepper.step(batches[0])
        first = _distances(start, _weights(model, skipped))
        for number in range(1, steps):
            stepper.step(batches[number % len(batches)])
        last = _distances(start, _weights(model, skipped))
    lr, eps = optimizer.defaults["lr"], optimizer.defaults.get("eps", 0.0)
    lora = {name: lr * _lora_step(config, d_out) for name, (_, d_out) in start.items()}
    updates = [Update(name, first[name], last[name], lora[name]) for name in start]
    return UpdateSizes(updates, gradients, lr, eps)


def _lora_step(config: Any, d_out: int) -> float:
    """Return ||dW||_F / lr of LoRA's first step on a linear map with ``d_out`` outputs."""
    alpha, r = getattr(config, "lora_alpha", None), getattr(config, "r", None)
    r = getattr(config, "init_r", r)  # AdaLoRA's own
    alpha, r = (alpha, r) if alpha and r else (16, 8)
    rank = min(r, config.k) if isinstance(config, Lora2Config) else r
    return alpha / r * math.sqrt(rank * d_out / 3) if d_out else math.nan


@contextlib.contextmanager
def _undone(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Restore what training steps change: weights, buffers, modes, optimiser, random numbers."""
    tensors = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    modes = {module: module.training for module in model.modules()}
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)
        for module, mode in modes.items():
            module.training = mode
        optimizer.zero_grad()
        optimizer.load_state_dict(state)


@torch.no_grad()
def _weights(model: nn.Module, skipped: Sequence[str]) -> Weights:
    """Return name -> each trained weight, or the weight change that an adapter makes."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    weights = {name: _adapted(name, layer) for name, layer in layers.items()}
    within = {p for layer in layers.values() for p in layer.parameters()}
    for name, p in model.named_parameters():
        if p.requires_grad and p not in within and not in_head(name, skipped):
            module = model.get_submodule(name.rpartition(".")[0])
            linear = isinstance(module, nn.Linear | Conv1D) and p.ndim == 2
            weights[name] = p.detach().clone(), p.shape[isinstance(module, Conv1D)] if linear else 0
    return weights


def _adapted(name: str, layer: Any) -> tuple[Tensor, int]:
    """Return the change a tuner's layer adds, else its map with the bias, (d_in + 1, d_out)."""
    base = layer.get_base_layer()
    what = f"{name}: {type(layer).__module__}.{type(layer).__name__} on {type(base).__name__}"
    if not isinstance(base, nn.Linear | Conv1D):
        raise TypeError(f"{what}: only what is done to linear maps is measured")
    d_out, d_in = base.weight.T.shape if isinstance(base, Conv1D) else base.weight.shape
    trained = [key for key, p in layer.named_parameters() if p.requires_grad]
    plain = not getattr(layer, "lora_variant", None) and not any("bias" in k for k in trained)
    if isinstance(layer, _ADDING) and plain:
        names = [name for name in layer.active_adapters if name in layer.r]
        return sum((layer.get_delta_weight(name) for name in names), torch.zeros(())), d_out
    # In double precision: an update may be far below a weight's rounding in single precision.
    layer = copy.deepcopy(layer).double().eval()
    rows = torch.eye(d_in + 1, d_in, dtype=torch.float64, device=base.weight.device)
    probe = torch.randn(4, d_in, dtype=torch.float64, device=rows.device)
    try:
        out, seen = layer(rows), layer(probe)
    except Exception as error:  # a tuner's forward may fail in any way on such an input
        raise TypeError(f"{what} cannot be measured: {error}") from error
    out[:-1] -= out[-1]
    if not torch.allclose(seen, probe @ out[:-1] + out[-1], rtol=1e-3, atol=1e-5):
        raise TypeError(f"{what} is not linear in its input: it does not come down to a weight")
    return out, d_out


def _distances(start: Weights, end: Weights) -> dict[str, float]:
    return {name: float((end[name][0] - start[name][0]).norm()) for name in start}
