"""How many examples a second a run handles, against the same run without its fast paths.

python -m lora2.experiment.speed task=mrpc method=lora2 backbone=minilm backbone.path=DIR \\
    data.dir=DIR [steps=10]

Takes the words of scripts/run_glue.py and real rows. Three ways take turns, a batch each: padded to
train.max_seq_length in fp32 with eager attention and unfused AdamW; the run as typed; and all that
this device has (train.group_by_length, bf16), unless typed otherwise.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.utils.data import BatchSampler
from transformers import BatchEncoding, DataCollatorWithPadding, set_seed
from transformers.utils import logging as transformers_logging

from lora2.bench.step import Stepper, settle
from lora2.experiment.backbone import load_backbone
from lora2.experiment.batching import LengthGrouped, collator, lengths
from lora2.experiment.config import resolve
from lora2.experiment.device import autocast, check_device, use_matmul_precision
from lora2.experiment.methods import prepare
from lora2.experiment.paths import tokens_dir
from lora2.experiment.problems import ConfigError, Problem
from lora2.experiment.provenance import device_name
from lora2.experiment.run import load_data
from lora2.experiment.schedule import total_steps
from lora2.experiment.schema import RunConfig
from lora2.experiment.timing import from_middle_phase
from lora2.experiment.training import build_optimizer, parameter_groups
from lora2.glue.cache import tokenize_once

STEPS = 10
WARM_UP = 2  # batches of each way that are not counted
PLAIN = ("train.precision=fp32", "train.tf32=null", "train.group_by_length=null",
         "backbone.attention=eager")  # fmt: skip
FAST = ("train.group_by_length=true", "train.precision=bf16")


@dataclasses.dataclass
class Way:
    """One way of doing the run, and what it took: (examples, seconds) of each counted batch."""

    name: str
    train: Callable[[int], int]  # does the batch with this number, returns its examples
    evaluate: Callable[[int], int]
    trained: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    evaluated: list[tuple[int, float]] = dataclasses.field(default_factory=list)


def main(argv: list[str]) -> int:
    """Measure and print; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers_logging.set_verbosity_error()  # a head that is new is no news here
    transformers_logging.disable_progress_bar()
    try:
        words, steps = split_words(argv)
        typed = resolve(words).config
        check_device(typed)
        print(
            f"{typed.method.name} on {typed.task}, {typed.backbone.name}, batches of "
            f"{typed.train.batch_size} on {device_name()}"
        )
        ways = measure(words, steps)
    except ConfigError as error:
        print(f"{error}\n{__doc__}", file=sys.stderr)
        return 2
    for way in ways:
        print(describe(way, ways[0]))
    return 0


def split_words(argv: list[str]) -> tuple[list[str], int]:
    """Return the run's words and the number of batches to count, the last that is typed.

    Raises:
        ConfigError: a number of batches is no whole number from 1 to 999,999,999.
    """
    counts = [word.partition("=")[2] for word in argv if word.startswith("steps=")]
    wrong = [one for one in counts if not (one.isdecimal() and len(one) < 10 and int(one) > 0)]
    if wrong:
        allowed = "allowed: a whole number >= 1, of 9 digits at most"
        raise ConfigError(Problem("steps", one, allowed) for one in wrong)
    own = [word for word in argv if not word.startswith("steps=")]
    return own, int(counts[-1]) if counts else STEPS


def measure(words: list[str], steps: int) -> list[Way]:
    """Build the ways and let them take turns, so that a machine's moods strike all alike.

    Raises:
        ConfigError: the words, or the device, do not allow the run as typed.
    """
    plain, all_on = resolve([*words, *PLAIN]).config, fastest(words)
    typed = resolve(words).config
    ways = [build(f"padded to {plain.train.max_seq_length}, fp32", plain, steps, padded=True)]
    ways.append(build("as typed", typed, steps))
    if all_on != words:
        name = "and " + " ".join(all_on[len(words) :])
        ways.append(build(name, resolve(all_on).config, steps))
    for number in range(-WARM_UP, steps):
        for way in ways:
            for act, taken in ((way.train, way.trained), (way.evaluate, way.evaluated)):
                settle()
                started = time.perf_counter()
                examples = act(number % steps)  # below 0 while warming up
                settle()
                if number >= 0:
                    taken.append((examples, time.perf_counter() - started))
    return ways


def fastest(words: list[str]) -> list[str]:
    """Return ``words`` and those of ``FAST`` that run and device allow and nobody typed."""
    found, typed = list(words), {word.partition("=")[0] for word in words}
    for word in FAST:
        try:
            if word.partition("=")[0] not in typed:
                check_device(resolve([*found, word]).config)
                found.append(word)
        except ConfigError:
            continue
    return found


def build(name: str, config: RunConfig, steps: int, padded: bool = False) -> Way:
    """Return a way of doing ``config``; ``padded`` leaves out what needs no key to be on."""
    set_seed(config.seed)
    config = from_middle_phase(config)
    train, data = config.train, load_data(config)
    tokenizer, base = load_backbone(config.backbone, data.task, train.cls_dropout)
    rows, *parts = [
        tokenize_once(frame, data.task, tokenizer, train.max_seq_length, tokens_dir(config))
        for frame in (data.train, *data.validation.values())
    ]
    stepper = make_stepper(base, config, len(rows), fused=not padded)
    length = train.max_seq_length
    full = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=length)
    collate = full if padded else collator(tokenizer, train)
    sizes = train.batch_size, train.batch_size if padded else train.eval_batch_size
    batches = spread(training_order(rows, config), sizes[0], steps)
    scored = concatenate_datasets(parts)
    in_order = np.arange(len(scored)) if padded else np.argsort(-lengths(scored))
    scored_batches = spread(in_order.tolist(), sizes[1], steps)

    def batch(split: Dataset, numbers: list[int]) -> BatchEncoding:
        return collate([split[i] for i in numbers]).to(stepper.device)  # (examples, tokens)

    def step(number: int) -> int:
        use_matmul_precision(config)
        stepper.step(batch(rows, batches[number]))
        return len(batches[number])

    def evaluate(number: int) -> int:
        use_matmul_precision(config)
        stepper.model.eval()
        with torch.inference_mode(), autocast(stepper.device, train.precision):
            stepper.model(**batch(scored, scored_batches[number]))
        stepper.model.train()
        return len(scored_batches[number])

    return Way(name, step, evaluate)


def make_stepper(base: nn.Module, config: RunConfig, rows: int, fused: bool) -> Stepper:
    """Return what takes the run's optimiser steps, its allocator at work from the first."""
    steps = total_steps(vars(config.train), rows)
    model, driver = prepare(base, config, steps)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    groups = parameter_groups(model.named_parameters(), config.train, config)
    plain = torch.optim.AdamW(list(groups), lr=config.train.learning_rate)
    return Stepper(
        model,
        driver,
        build_optimizer(model, config) if fused else plain,
        steps,
        max_grad_norm=config.train.max_grad_norm,
        precision=config.train.precision,
    )


def training_order(rows: Dataset, config: RunConfig) -> list[int]:
    """Return the rows' numbers in the order of the run's first epoch, or one like it."""
    if config.train.group_by_length:
        return list(LengthGrouped(lengths(rows), config.train.batch_size, config.seed))
    return torch.randperm(len(rows)).tolist()


def spread(order: list[int], size: int, count: int) -> list[list[int]]:
    """Return ``count`` batches of rows in that order, evenly spaced: short ones and long ones.

    One alone is the middle one.
    """
    batches = list(BatchSampler(order, size, drop_last=len(order) >= size))
    last = len(batches) - 1
    places = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
    return [batches[i] for i in places.round().astype(int)]


def describe(way: Way, base: Way) -> str:
    """Return a line: examples a second in training and evaluation, and their ratio to ``base``."""
    parts = []
    for kind, taken, other in (
        ("training", way.trained, base.trained),
        ("evaluation", way.evaluated, base.evaluated),
    ):
        parts.append(f"{kind} {rate(taken):.1f} examples/s ({rate(taken) / rate(other):.2f} x)")
    return f"  {way.name}: {', '.join(parts)}"


def rate(taken: list[tuple[int, float]]) -> float:
    """Return examples per second."""
    return sum(n for n, _ in taken) / sum(seconds for _, seconds in taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
