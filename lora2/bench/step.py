"""One training step of a method, and several methods taking turns in one process."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora2.bench.counters import Counts, counting, peak_bytes
from lora2.bench.encoders import own_trained, twin
from lora2.bench.methods import STEPS, Method, prepare

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batch = dict[str, Tensor]
Seconds = dict[str, list[float]]


class Stepper:
    """A prepared model with all that a training step of it needs.

    Args:
        model: gives a loss for a batch; on its device.
        driver: an object with the hooks of ``lora2.callbacks``, or None.
        optimizer: of the model's trainable parameters.
        steps: optimiser steps of the pretended training, for schedules.
        max_grad_norm: of the clipping; None clips nothing.
        precision: fp32, or the autocast of the forward pass: bf16, fp16.
    """

    def __init__(
        self,
        model: nn.Module,
        driver: Any,
        optimizer: torch.optim.Optimizer,
        steps: int = STEPS,
        *,
        max_grad_norm: float | None = 1.0,
        precision: str = "fp32",
    ) -> None:
        self.model, self.driver, self.optimizer = model.train(), driver, optimizer
        self.max_grad_norm, self.precision = max_grad_norm, precision
        self.device = next(model.parameters()).device.type
        self.number = 0
        self._drive("prepare_training", steps)

    def step(self, batch: Batch) -> None:
        """Forward, backward, clipping, optimiser, allocator."""
        self.number += 1
        with autocast(self.device, self.precision):
            loss = self.model(**batch).loss
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self._drive("before_optimizer_step", self.number)
        self.optimizer.step()
        self._drive("after_optimizer_step", self.number)
        self.optimizer.zero_grad()

    def counts(self, batch: Batch) -> Counts:
        """Take a step and return what it had the device do."""
        with counting(self.device) as found:
            self.step(batch)
        return found

    def memory_mib(self, batch: Batch) -> float:
        """Take a step; return the most MiB that this method alone would have held in it.

        Weights, optimiser state, and the most that was made during the step. Other models in the
        process, and the allocator's reserves, are not counted.
        """
        return (held_bytes(self) + peak_bytes(lambda: self.step(batch), self.device)) / 2**20

    def trainable(self) -> int:
        """Return the parameters that are trained, the head included."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _drive(self, hook: str, number: int) -> None:
        if self.driver is not None and hasattr(type(self.driver), hook):
            getattr(self.driver, hook)(number)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass in ``precision``."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device, kind) if kind else contextlib.nullcontext()


def held_bytes(stepper: Stepper) -> int:
    """Return the bytes of a model's weights, buffers and optimiser state, each storage once."""
    state = [value for one in stepper.optimizer.state.values() for value in one.values()]
    tensors = [*stepper.model.parameters(), *stepper.model.buffers()]
    tensors += [value for value in state if isinstance(value, Tensor)]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def build(base: nn.Module, method: Method, precision: str = "fp32") -> Stepper:
    """Return a stepper on a model that uses ``base``'s memory for what the method leaves frozen."""
    model, driver = prepare(twin(base), method)
    own_trained(model, base)
    model.to(next(base.parameters()).device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    return Stepper(model, driver, optimizer, precision=precision)


def own_clock(device: str) -> Callable[[], float]:
    """Return the clock of work done on ``device``, cpu or cuda, by this process, in seconds.

    Where one thread of a processor does all of it, that is the process's own time: waiting for
    other programs is not in it. What these do to shared caches, to the memory's bandwidth and to
    the processor's speed still is.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def interleave(
    actions: Mapping[str, Callable[[int], object]], device: str, rounds: int, warm_up: int = 2
) -> Seconds:
    """Time several actions on ``device``, one of each in turn (A B C A B C), ``rounds`` times.

    In turn, so that a machine that slows down or speeds up does it to all of them alike. An action
    gets the number of its round, from 0; the first ``warm_up`` rounds are not counted. The device
    is idle when the clock starts and again when it stops.
    """
    clock = own_clock(device)
    seconds: Seconds = {name: [] for name in actions}
    for number in range(warm_up + rounds):
        for name, action in actions.items():
            settle()
            started = clock()
            action(number)
            settle()
            spent = clock() - started
            if number >= warm_up:
                seconds[name].append(spent)
    return seconds


def take_turns(
    steppers: Mapping[str, Stepper], batches: Sequence[Batch], rounds: int, warm_up: int = 2
) -> Seconds:
    """``interleave`` the steps of several methods, all on the same batch in a round."""
    actions = {
        name: lambda number, one=one: one.step(batches[number % len(batches)])
        for name, one in steppers.items()
    }
    device = next(iter(steppers.values())).device
    return interleave(actions, device, rounds, warm_up)


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over rounds of a time against another of the same round."""
    return statistics.median(one / other for one, other in zip(seconds, base, strict=True))


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(seconds) < 2:
        return (seconds[0],) * 3
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high


def settle() -> None:
    """Wait until the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give the memory of models no longer referenced back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
