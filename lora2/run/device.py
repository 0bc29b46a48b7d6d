"""Check that this machine's device can do what a run asks for, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from lora2.config.problems import ConfigError, Problem
from lora2.config.schema import RunConfig
from lora2.run.provenance import device_name

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context of a forward pass in a run's ``train.precision``."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device, kind) if kind else nullcontext()


def check_device(config: RunConfig) -> None:
    """Refuse what the device lacks.

    Raises:
        ConfigError: naming every key at fault and what to type.
    """
    problems = list(_precision(config))
    if problems:
        raise ConfigError(problems)


def use_matmul_precision(config: RunConfig) -> None:
    """Set how float32 matrix products are computed in this process: TF32 only where asked for.

    A worker does many runs: each leaves behind what the next one may not want.
    """
    wanted = "high" if config.train.tf32 else "highest"
    if torch.get_float32_matmul_precision() != wanted:
        torch.set_float32_matmul_precision(wanted)


def _precision(config: RunConfig) -> Iterator[Problem]:
    train, device = config.train, device_name()
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
