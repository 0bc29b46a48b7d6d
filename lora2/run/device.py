"""What a run asks of this machine's device: checked before loading, fitted into its memory."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from lora2.config.problems import ConfigError, Problem
from lora2.config.schema import RunConfig, Train
from lora2.run.provenance import device_name, world_size

logger = logging.getLogger(__name__)
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


class OutOfMemory(RuntimeError):
    """The device's memory does not hold the smallest part of a batch that can be tried."""


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context of a forward pass in a run's ``train.precision``."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device, kind) if kind else nullcontext()


def use_matmul_precision(config: RunConfig) -> None:
    """Set how this process multiplies float32 matrices: in TF32 only if ``train.tf32`` is set.

    A worker does many runs, so each sets what the one before may have changed.
    """
    wanted = "high" if config.train.tf32 else "highest"
    if torch.get_float32_matmul_precision() != wanted:
        torch.set_float32_matmul_precision(wanted)


def check_device(config: RunConfig) -> None:
    """Refuse what this machine lacks: precisions of its device, and trackers.

    Raises:
        ConfigError: naming every key at fault and what to type.
    """
    installed = get_available_reporting_integrations()
    problems = [
        Problem("train.report_to", name, ", ".join(installed) or "null", "is not installed")
        for name in config.train.report_to or ()
        if name not in installed
    ]
    problems += _precision_problems(config.train)
    if problems:
        raise ConfigError(problems)


def _precision_problems(train: Train) -> Iterator[Problem]:
    device = device_name()
    if train.precision == "bf16" and not _has_bf16():
        wrong = (
            f"bf16 needs a GPU with bfloat16 (NVIDIA: Ampere or newer) or a processor with "
            f"AVX512-BF16, not {device}"
        )
        yield Problem("train.precision", "bf16", "fp32", wrong)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", train.precision):  # it would win, and the row would not say so
        allowed = f"{launched}, or accelerate launch --mixed_precision=no"
        wrong = f"accelerate was launched with --mixed_precision={launched}"
        yield Problem("train.precision", train.precision, allowed, wrong)
    if train.precision == "fp16" and not torch.accelerator.is_available():
        yield Problem("train.precision", "fp16", "fp32", f"fp16 needs a GPU, not {device}")
    if train.tf32 and not is_torch_tf32_available():
        wrong = f"TF32 needs an NVIDIA GPU (Ampere or newer), not {device}"
        yield Problem("train.tf32", True, "null", wrong)


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Other processors emulate it, which is slower than fp32.
    processor = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return bool(is_torch_bf16_gpu_available()) or processor


def within_memory(requested: RunConfig, attempt: Callable[[RunConfig, str], None]) -> None:
    """Call ``attempt(effective, note)`` with ever smaller parts of a batch until memory suffices.

    Micro-batch and evaluation batch are halved; ``train.batch_size``, the effective one, is kept by
    accumulating gradients, so that only rounding and the draws of dropout differ. ``note`` says
    what did not fit, "" the first time. An attempt that wrote a checkpoint is resumed from it.
    accelerate's ``find_executable_batch_size`` would hide how small the parts became, and where
    none fits.

    Raises:
        OutOfMemory: one example does not fit, or several processes train together, of which one
            cannot change its part alone.
    """
    effective, note = requested, ""
    while True:
        try:
            return attempt(effective, note)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            size = _micro_batch(effective.train)
            note = f"{note}, {size}" if note else f"out of memory at micro-batch {size}"
            effective = dataclasses.replace(effective, train=_smaller(effective.train, error))
        logger.warning("%s, now %d", note, effective.train.micro_batch_size)
        clear_device_cache(garbage_collection=True)  # after the error, which holds the old model


def _smaller(train: Train, error: RuntimeError) -> Train:
    micro = _micro_batch(train)
    halves = [n for n in range(1, micro // 2 + 1) if train.batch_size % n == 0]
    if world_size() > 1 or not halves:
        why = str(error).splitlines()[0]
        parts = f"train.micro_batch_size={halves[-1]}, " if halves else ""
        raise OutOfMemory(
            f"out of memory with {micro} examples per device and pass ({why}): set {parts}a "
            "smaller train.max_seq_length, or use a smaller encoder or a larger device"
        ) from error
    return dataclasses.replace(
        train, micro_batch_size=halves[-1], eval_batch_size=max(1, train.eval_batch_size // 2)
    )


def _micro_batch(train: Train) -> int:
    return train.micro_batch_size or train.batch_size // world_size()
