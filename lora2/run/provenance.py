"""Record code, versions and device on every row of results."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate")
REPOSITORY = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, str | bool]:
    """Return commit, dirty, device and versions; an installed package has no commit."""
    commit, dirty = code_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "device": device_name(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def code_state() -> tuple[str, bool]:
    """Return (commit, whether tracked files of the code differ from it); ("", False) without git.

    Results are outputs, not code: changes under results/ do not make a tree dirty.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return commit[:12], bool(changed)


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def device_name(kind: str | None = None) -> str:
    """Return the accelerator's name, or the processor's architecture and threads.

    ``kind`` is ``cuda`` or ``cpu``; None takes an accelerator where there is one.
    """
    if kind != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.get_num_threads()} threads"


def forget_peak_memory() -> None:
    """Reset ``peak_memory_mb``: a worker does many runs in one process.

    Where the system cannot (macOS, a kernel that forbids it) an earlier run's peak stays.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: proc_pid_clear_refs(5)


def peak_memory_mb() -> float:
    """Return the most memory held so far in MiB: on the GPU, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def world_size() -> int:
    """Return the number of processes that ``accelerate launch`` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the process of a launch that writes."""
    return os.environ.get("RANK", "0") == "0"
