"""Build a method's training step and its batches, and time several methods in turn."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from lora2.bench.counters import counting, peak_bytes
from lora2.callbacks import call_hook
from lora2.config.schema import RunConfig, Train
from lora2.embedded import encoder_path, make_split
from lora2.glue.data import tokenize
from lora2.glue.tasks import TASKS
from lora2.run.device import autocast, use_matmul_precision
from lora2.run.methods import prepare
from lora2.run.model import encoder_config, longest, random_encoder
from lora2.run.trainer import build_optimizer

STEPS = 100_000  # of the assumed training: no measurement reaches its last phase
LENGTHS = Path(__file__).parent / "glue_lengths.csv"
QUANTILES = (0, 1, 2, *range(5, 100, 5), 98, 99, 99.5, 99.9, 100)  # percent
FIRST_WORD = 5  # smaller ids are special in every tokeniser here
Batch = dict[str, Tensor]
# Free the device memory of models that are no longer referenced.
release = partial(clear_device_cache, garbage_collection=True)


class Stepper:
    """A prepared model with all that a training step needs.

    ``driver`` has the hooks of ``lora2.callbacks`` or is None; ``steps`` are those of the assumed
    training, for schedules; clipping and autocast are those of ``train``.
    """

    def __init__(
        self, model: nn.Module, driver: Any, optimizer: torch.optim.Optimizer, train: Train,
        steps: int = STEPS,
    ) -> None:  # fmt: skip
        self.model, self.driver, self.optimizer = model.train(), driver, optimizer
        self.max_grad_norm, self.precision = train.max_grad_norm, train.precision
        self.device = next(model.parameters()).device.type
        self.number = 0
        call_hook(driver, "prepare_training", steps)

    def step(self, batch: Batch) -> None:
        """Run forward, backward, clipping, optimiser and allocator once."""
        self.number += 1
        with autocast(self.device, self.precision):
            loss = self.model(**batch).loss
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        call_hook(self.driver, "before_optimizer_step", self.number)
        self.optimizer.step()
        call_hook(self.driver, "after_optimizer_step", self.number)
        self.optimizer.zero_grad()


def held_mib(stepper: Stepper) -> float:
    """Return the MiB of a model's weights, buffers and optimiser state, each storage once."""
    state = [value for entry in stepper.optimizer.state.values() for value in entry.values()]
    held = [*stepper.model.parameters(), *stepper.model.buffers(), *state]
    storages = (value.untyped_storage() for value in held if isinstance(value, Tensor))
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values()) / 2**20


def build(
    base: nn.Module, config: RunConfig, steps: int = STEPS, *, fused: bool = False
) -> Stepper:
    """Prepare a copy of ``base``, method and optimiser of a run of ``steps`` optimiser steps.

    An allocator starts at once (tinit = 0): scoring and masking is its expensive part. AdamW is
    fused on a GPU only; ``fused`` fuses it on any device: operations are counted as on a GPU.
    """
    set_seed(config.seed)
    use_matmul_precision(config)
    if hasattr(config.method, "tinit"):
        config = dataclasses.replace(config, method=dataclasses.replace(config.method, tinit=0))
    model, driver = prepare(copy.deepcopy(base), config, steps)
    model.to(next(base.parameters()).device)
    optimizer = build_optimizer(model, config)
    if fused:
        for group in optimizer.param_groups:
            group["fused"] = True
    return Stepper(model, driver, optimizer, config.train, steps)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One configuration's steps: seconds each, and what one more step needs (0: not counted)."""

    seconds: list[float]
    tokens: float  # per example, padding included; mean over the batches
    trainable: int = 0  # parameters, head included
    peak_memory_mb: float = 0.0  # MiB of this model: what it holds, and the peak of a step
    held_memory_mb: float = 0.0  # MiB of that in weights and optimiser state
    kernels: int = 0  # operations that are not views
    syncs: int = 0  # places where the host waits for values of the device


def measure(
    runs: Mapping[str, tuple[RunConfig, int]], batches: Sequence[Batch], rounds: int,
    warm_up: int = 2, base: nn.Module | None = None, *, fused: bool = False, count: bool = True,
) -> dict[str, Measured]:  # fmt: skip
    """Time the steps of several runs (configuration and length), taken in turn.

    In a round all step on the same batch. All start from ``base``'s weights, on its device; without
    it from random weights of the first run's encoder. With ``count`` each takes one more step,
    whose operations and memory are counted.
    """
    if base is None:
        first = next(iter(runs.values()))[0]
        shape, labels = encoder_config(first.backbone), TASKS[first.task].num_labels
        base = random_encoder(shape, labels, first.backbone.attention)
        base = base.to("cuda" if torch.cuda.is_available() else "cpu")
    steppers = {name: build(base, *run, fused=fused) for name, run in runs.items()}
    device = next(base.parameters()).device
    moved = [{key: value.to(device) for key, value in batch.items()} for batch in batches]
    actions = {
        name: lambda number, stepper=stepper: stepper.step(moved[number % len(moved)])
        for name, stepper in steppers.items()
    }
    seconds = interleave(actions, device.type, rounds, warm_up)
    widest = max(moved, key=lambda batch: batch["input_ids"].shape[1])
    tokens = statistics.mean(batch["input_ids"].shape[1] for batch in moved)
    results = {
        name: Measured(seconds[name], tokens, **(needs(stepper, widest) if count else {}))
        for name, stepper in steppers.items()
    }
    del steppers, actions, base
    release()
    return results


def needs(stepper: Stepper, batch: Batch) -> dict[str, Any]:
    """Take a step; return its counts, and the memory that this model alone needs."""
    held = held_mib(stepper)
    with counting(stepper.device) as counts:
        peak = peak_bytes(lambda: stepper.step(batch), stepper.device) / 2**20
    return {
        "trainable": sum(p.numel() for p in stepper.model.parameters() if p.requires_grad),
        "peak_memory_mb": held + peak,
        "held_memory_mb": held,
        "kernels": len(counts.kernels),
        "syncs": len(counts.syncs),
    }


def own_clock(device: str) -> Callable[[], float]:
    """Return the clock, in seconds, of work that this process does on ``device``, cpu or cuda.

    With one thread on a CPU it is the process's CPU time, without waiting for other programs.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def interleave(
    actions: Mapping[str, Callable[[int], object]], device: str, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time several actions on ``device``, one of each in turn (A B C A B C), ``rounds`` times.

    So a machine that slows down slows all of them alike. An action gets the number of its round,
    from 0; the first ``warm_up`` rounds are not counted.
    """
    clock = own_clock(device)
    seconds = {name: list[float]() for name in actions}
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


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of ``seconds`` / ``base``, divided round by round."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    return tuple(np.percentile(seconds, [25, 50, 75]).tolist())


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def batches(config: RunConfig, count: int) -> list[Batch]:
    """Return ``count`` batches of the run, padded to their longest example as in training.

    For embedded tasks their sentences; for GLUE random tokens, as many as its sentences have.
    """
    task, train = TASKS[config.task], config.train
    if config.data.source == "embedded":
        tokenizer = AutoTokenizer.from_pretrained(encoder_path(config.backbone.name))
        return real_batches(make_split(config.task, "train"), config, tokenizer, count)
    encoder = encoder_config(config.backbone)
    generator = torch.Generator().manual_seed(config.seed)
    most, drawn = longest(encoder, train.max_seq_length), list[Batch]()
    for _ in range(count):
        lengths = draw_lengths(task.name, train.batch_size, generator).clamp(max=most)
        drawn.append(padded_batch(lengths, encoder.vocab_size, task.num_labels, generator))
    return drawn


def real_batches(
    rows: pd.DataFrame, config: RunConfig, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[Batch]:
    """Return the first ``count`` batches of ``rows`` of a run's training split, tokenised."""
    size, length = config.train.batch_size, config.train.max_seq_length
    data = tokenize(rows.head(count * size), TASKS[config.task], tokenizer, length)
    return list(DataLoader(data, size, collate_fn=DataCollatorWithPadding(tokenizer)))


def draw_lengths(task: str, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` lengths of a GLUE task's training examples in DeBERTaV3's tokens, (count,).

    The quantiles in ``LENGTHS`` include special tokens and are cut to the public max_seq_length.
    """
    quantiles = pd.read_csv(LENGTHS, index_col="task").loc[task, [f"p{q}" for q in QUANTILES]]
    where = 100 * torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    lengths = np.interp(where, QUANTILES, quantiles.astype(float))
    return torch.from_numpy(lengths).round().long()


def padded_batch(
    lengths: Tensor, vocabulary: int, num_labels: int, generator: torch.Generator
) -> Batch:
    """Return random token ids and mask, (batch, longest), padded to the longest of ``lengths``.

    Labels: (batch,), class numbers, or similarities from 0 to 5 when ``num_labels`` is 1.
    """
    size, most = len(lengths), int(lengths.max())
    mask = (torch.arange(most) < lengths[:, None]).long()  # (batch, longest)
    words = torch.randint(FIRST_WORD, vocabulary, (size, most), generator=generator)
    labels = torch.rand(size, generator=generator) * 5
    if num_labels > 1:
        labels = torch.arange(size) % num_labels
    return {"input_ids": words * mask, "attention_mask": mask, "labels": labels}
