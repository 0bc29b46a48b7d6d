"""Training steps of a run, apart from any training: random weights, batches of real lengths."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig, set_seed

from lora2.bench.encoders import longest
from lora2.bench.lengths import draw, known_lengths, padded_batch
from lora2.bench.step import Batch, Stepper, held_bytes, release, take_turns
from lora2.experiment.device import use_matmul_precision
from lora2.experiment.methods import prepare
from lora2.experiment.schema import RunConfig
from lora2.experiment.shapes import encoder_config, random_encoder
from lora2.experiment.training import build_optimizer
from lora2.glue.tasks import get_task


@dataclasses.dataclass(frozen=True)
class Measured:
    """One configuration's steps: seconds each, and what it needs."""

    seconds: list[float]
    tokens: float  # per example, padding included; mean over the batches
    trainable: int  # parameters, head included
    peak_memory_mb: float  # MiB: weights, optimiser state, and the most made in a step
    held_memory_mb: float  # MiB: of that, weights and optimiser state

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def stepper(config: RunConfig, steps: int) -> Stepper:
    """Return what takes the optimiser steps of a run of ``steps``.

    An allocator starts at once (tinit = 0): scoring and masking is its dear part. TF32 is on or
    off in the whole process, as the latest run wants it.
    """
    set_seed(config.seed)
    config = from_middle_phase(config)
    train = config.train
    use_matmul_precision(config)
    base = random_encoder(config.backbone, get_task(config.task))
    model, driver = prepare(base, config, steps)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Stepper(
        model,
        driver,
        build_optimizer(model, config),
        steps,
        max_grad_norm=train.max_grad_norm,
        precision=train.precision,
    )


def from_middle_phase(config: RunConfig) -> RunConfig:
    """Return the run with an allocator that has no initial phase; others as they are."""
    if not hasattr(config.method, "tinit"):
        return config
    return dataclasses.replace(config, method=dataclasses.replace(config.method, tinit=0))


def batches(config: RunConfig, count: int) -> list[Batch]:
    """Return ``count`` batches of the run, padded to their longest example as in training.

    The embedded tasks' own sentences; for GLUE random tokens, as many as its sentences have.
    """
    if config.data.source == "embedded":
        return _embedded_batches(config, count)
    encoder, generator = encoder_config(config.backbone), torch.Generator().manual_seed(config.seed)
    return [_drawn_batch(config, encoder, generator) for _ in range(count)]


def _drawn_batch(config: RunConfig, encoder: PreTrainedConfig, generator: torch.Generator) -> Batch:
    task, train = get_task(config.task), config.train
    most = longest(encoder, train.max_seq_length)
    drawn = draw(known_lengths()[task.name], train.batch_size, generator).clamp(max=most)
    return padded_batch(drawn, encoder.vocab_size, task.num_labels, generator)


def _embedded_batches(config: RunConfig, count: int) -> list[Batch]:
    from transformers import AutoTokenizer, DataCollatorWithPadding

    from lora2.embedded import encoder_path, make_split
    from lora2.glue.tokenize import tokenize

    tokenizer = AutoTokenizer.from_pretrained(encoder_path(config.backbone.name))
    size = config.train.batch_size
    frame = make_split(config.task, "train").head(count * size)
    rows = tokenize(frame, get_task(config.task), tokenizer, config.train.max_seq_length)
    starts = range(0, len(rows), size)
    collate = DataCollatorWithPadding(tokenizer)
    return [
        dict(collate([rows[i] for i in range(start, min(start + size, len(rows)))]))
        for start in starts
    ]


def measure(
    runs: Mapping[str, tuple[RunConfig, int]],
    own: Sequence[Batch],
    rounds: int,
    warm_up: int = 2,
) -> dict[str, Measured]:
    """Return what the steps of several runs (configuration and length) took, taken in turn.

    In a round all step on the same of the batches ``own``.
    """
    steppers = {name: stepper(config, steps) for name, (config, steps) in runs.items()}
    device = next(iter(steppers.values())).device
    moved: list[dict[str, Tensor]] = [
        {key: value.to(device) for key, value in batch.items()} for batch in own
    ]
    seconds = take_turns(steppers, moved, rounds, warm_up)
    lengths = [batch["input_ids"].shape[1] for batch in own]
    widest = moved[lengths.index(max(lengths))]
    found = {
        name: Measured(
            seconds[name],
            statistics.mean(lengths),
            one.trainable(),
            one.memory_mib(widest),
            held_bytes(one) / 2**20,
        )
        for name, one in steppers.items()
    }
    del steppers
    release()
    return found
