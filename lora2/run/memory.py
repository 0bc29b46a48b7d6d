"""Out of memory: the same batch in smaller parts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lora2.config.schema import RunConfig, Train
from lora2.run.provenance import world_size

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """The device's memory does not hold the smallest part of a batch that can be tried."""


def within_memory(config: RunConfig, attempt: Callable[[RunConfig, str], Result]) -> Result:
    """Return ``attempt(config, note)``, tried with ever smaller parts of a batch while memory ends.

    Micro-batch and evaluation batch are halved; ``train.batch_size``, the effective one, is kept by
    accumulating gradients, so that what is computed differs by rounding and the draws of dropout
    alone. ``note`` says what did not fit, "" the first time. An attempt that has written a
    checkpoint goes on from it. accelerate's ``find_executable_batch_size`` would hide how small the
    parts became, and where none fits.

    Raises:
        OutOfMemory: one example does not fit, or several processes train together, of which one
            alone cannot change its part.
    """
    note = ""
    while True:
        try:
            return attempt(config, note)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            config, note = _smaller(config, error), _note(config.train, note)
        logger.warning("%s, now %d", note, config.train.micro_batch_size)
        clear_device_cache(garbage_collection=True)  # after the error, which holds the old model


def _smaller(config: RunConfig, error: RuntimeError) -> RunConfig:
    train = config.train
    micro = _micro(train)
    halves = [n for n in range(1, micro // 2 + 1) if train.batch_size % n == 0]
    if world_size() > 1 or not halves:
        why = str(error).splitlines()[0]
        parts = f"train.micro_batch_size={halves[-1]}, " if halves else ""
        raise OutOfMemory(
            f"out of memory with {micro} examples per device and pass ({why}): set {parts}a "
            "smaller train.max_seq_length, or take a smaller encoder or a larger device"
        ) from error
    smaller = dataclasses.replace(
        train, micro_batch_size=halves[-1], eval_batch_size=max(1, train.eval_batch_size // 2)
    )
    return dataclasses.replace(config, train=smaller)


def _micro(train: Train) -> int:
    return train.micro_batch_size or train.batch_size // world_size()


def _note(train: Train, before: str) -> str:
    size = str(_micro(train))
    return f"{before}, {size}" if before else f"out of memory at micro-batch {size}"
