"""Seconds per optimiser step, apart from any training: random weights, one fixed batch."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from lora2.experiment.methods import prepare
from lora2.experiment.provenance import peak_memory_mb
from lora2.experiment.schema import RunConfig
from lora2.experiment.shapes import longest, random_encoder
from lora2.experiment.training import build_optimizer
from lora2.glue.tasks import get_task

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One configuration's steps: seconds each, and what it needs."""

    seconds: list[float]
    tokens: int  # per example
    trainable: int  # parameters, head included
    peak_memory_mb: float  # so far in this process; on a GPU, of all models held together

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Stepper:
    """One prepared model and ``step()``, which takes an optimiser step and returns its seconds.

    An allocator starts at once (tinit = 0): scoring and masking is its dear part.
    """

    def __init__(self, config: RunConfig, steps: int, batch: dict[str, Tensor] | None = None):
        set_seed(config.seed)
        self.config = config = from_middle_phase(config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        task = get_task(config.task)
        base = random_encoder(config.backbone, task)
        self.tokens = longest(base.config, config.train.max_seq_length)
        batch = batch or random_batch(config, base.config.vocab_size, self.tokens)
        self.tokens = batch["input_ids"].shape[1]
        self.batch = {key: value.to(self.device) for key, value in batch.items()}
        model, self.driver = prepare(base, config, steps)
        self.model: nn.Module = model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, config)
        self.number = 0
        self._drive("prepare_training", steps)

    def step(self) -> float:
        """Forward, backward, clipping, optimiser, allocator; seconds until the device is done."""
        self._settle()
        started = time.perf_counter()
        self.number += 1
        with self._precision():
            loss = self.model(**self.batch).loss
        loss.backward()
        if self.config.train.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.max_grad_norm)
        self._drive("before_optimizer_step", self.number)
        self.optimizer.step()
        self._drive("after_optimizer_step", self.number)
        self.optimizer.zero_grad()
        self._settle()
        return time.perf_counter() - started

    def measured(self, seconds: list[float]) -> Measured:
        trained = [p.numel() for p in self.model.parameters() if p.requires_grad]
        return Measured(seconds, self.tokens, sum(trained), peak_memory_mb())

    def _drive(self, hook: str, number: int) -> None:
        if self.driver is not None and hasattr(type(self.driver), hook):
            getattr(self.driver, hook)(number)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        kind = AUTOCAST.get(self.config.train.precision)
        return torch.autocast(self.device.type, kind) if kind else contextlib.nullcontext()

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def from_middle_phase(config: RunConfig) -> RunConfig:
    """Return the run with an allocator that has no initial phase; others as they are."""
    if not hasattr(config.method, "tinit"):
        return config
    return dataclasses.replace(config, method=dataclasses.replace(config.method, tinit=0))


def random_batch(config: RunConfig, vocabulary: int, tokens: int) -> dict[str, Tensor]:
    """Return token ids and mask, (batch, tokens) each, and labels (batch,), full to the brim."""
    task, size = get_task(config.task), config.train.batch_size
    ids = torch.randint(5, vocabulary, (size, tokens))  # (batch, tokens); the first are special
    labels = torch.rand(size) * 5 if task.is_regression else torch.arange(size) % task.num_labels
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def interleave(
    builders: Sequence[Callable[[], Stepper]], rounds: int, warm_up: int = 2
) -> list[Measured]:
    """Measure several methods in one process, a step of each in turn, ``rounds`` times.

    In turn, so that a machine that slows down or speeds up does it to all of them alike.
    """
    steppers = [build() for build in builders]
    seconds: list[list[float]] = [[] for _ in steppers]
    for number in range(warm_up + rounds):
        for stepper, found in zip(steppers, seconds, strict=True):
            spent = stepper.step()
            if number >= warm_up:
                found.append(spent)
    result = [one.measured(found) for one, found in zip(steppers, seconds, strict=True)]
    del steppers
    release()
    return result


def release() -> None:
    """Give the memory of models no longer referenced back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
