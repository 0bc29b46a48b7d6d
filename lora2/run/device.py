"""Check that this machine can do a run, fit the run to its memory, record device and code."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from lora2.config.problems import Problem, ProblemList
from lora2.config.schema import RunConfig, Train

logger = logging.getLogger(__name__)
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate")
REPOSITORY = Path(__file__).resolve().parents[2]


class OutOfMemory(RuntimeError):
    """The device's memory does not hold the smallest part of a batch that can be tried."""


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass in a run's ``train.precision``."""
    kind = AUTOCAST.get(precision)
    return torch.autocast(device, kind) if kind else contextlib.nullcontext()


def use_matmul_precision(config: RunConfig) -> None:
    """Set how this process, which may do many runs, multiplies float32: TF32 for ``train.tf32``."""
    wanted = "high" if config.train.tf32 else "highest"
    if torch.get_float32_matmul_precision() != wanted:  # setting it may warn
        torch.set_float32_matmul_precision(wanted)


def check_device(config: RunConfig) -> None:
    """Refuse precisions that this machine's device lacks, and trackers that are not installed."""
    ProblemList(_device_problems(config.train)).raise_if_any()


def _device_problems(train: Train) -> Iterator[Problem]:
    device, installed = device_name(), get_available_reporting_integrations()
    for name in set(train.report_to or ()).difference(installed):
        allowed = ", ".join(installed) or "null"
        yield Problem("train.report_to", name, allowed, "is not installed")
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
    # Processors without the instructions emulate it, which is slower than fp32.
    return is_torch_bf16_gpu_available() or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def within_memory(requested: RunConfig, attempt: Callable[[RunConfig, str], None]) -> None:
    """Call ``attempt(effective, note)`` with ever smaller parts of a batch until memory suffices.

    Micro-batch and evaluation batch are halved; ``train.batch_size``, the effective one, is kept by
    accumulating gradients, so that only rounding and the draws of dropout differ. ``note`` says
    what did not fit, "" the first time. An attempt that wrote a checkpoint is resumed from it.

    Raises:
        OutOfMemory: one example does not fit, or several processes train together, and one alone
            cannot change its batch size.
    """
    train, note = requested.train, ""
    while True:
        try:
            return attempt(dataclasses.replace(requested, train=train), note)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            micro = train.micro_batch_size or train.batch_size // world_size()
            halves = [n for n in range(1, micro // 2 + 1) if train.batch_size % n == 0]
            if world_size() > 1 or not halves:
                why = str(error).splitlines()[0]
                parts = f"train.micro_batch_size={halves[-1]}, " if halves else ""
                raise OutOfMemory(
                    f"out of memory with {micro} examples per device and pass ({why}): set {parts}"
                    "a smaller train.max_seq_length, or use a smaller encoder or a larger device"
                ) from error
        note = f"{note}, {micro}" if note else f"out of memory at micro-batch {micro}"
        evaluated = max(1, train.eval_batch_size // 2)
        train = dataclasses.replace(train, micro_batch_size=halves[-1], eval_batch_size=evaluated)
        logger.warning("%s, now %d", note, train.micro_batch_size)
        clear_device_cache(garbage_collection=True)  # after the error, which holds the old model


def provenance() -> dict[str, str | bool]:
    """Return commit, dirty, device and versions; an installed package has no commit."""
    commit, dirty = code_version()
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return {"commit": commit, "dirty": dirty, "device": device_name(), **versions}


@cache
def code_version() -> tuple[str, bool]:
    """Return commit and dirty at the first call: later changes are not what was imported."""
    try:
        commit = _git("rev-parse", "HEAD")[:12]
        # Results are outputs, not code.
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":!results"))
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return commit, dirty


def _git(*words: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def device_name() -> str:
    """Return the accelerator's name, or the processor's architecture and threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.get_num_threads()} threads"


def forget_peak_memory() -> None:
    """Reset ``peak_memory_mb``; where the system cannot, an earlier run's peak stays."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def peak_memory_mb() -> float:
    """Return the most memory held so far in MiB: on the GPU, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
