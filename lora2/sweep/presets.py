"""Profiles: which encoder, data, length and seeds stand for the paper's on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lora2.config.parse import CONFIGS, options, read_yaml
from lora2.config.problems import ConfigError, Problem, check_section, unknown
from lora2.config.schema import Seed, checked
from lora2.glue.tasks import REPOSITORY
from lora2.hub import describe, unavailable

AUTO = "auto"
HOW_TO_PAPER = (
    "the paper's: profile=paper on a machine with a CUDA GPU, and either a network or "
    "backbone.path=DIR data.dir=DIR"
)


@checked
class Profile:
    """What a profile file says; ``encoders`` maps the paper's encoder to the one used here."""

    name: str
    note: str  # one sentence, printed before anything runs
    encoders: dict[str, str | None]  # None: nothing here stands for that encoder
    seeds: Annotated[list[Seed], Field(min_length=1)] | None  # None: those of the public scripts
    overrides: list[str]  # words of run_glue.py, for every run


def load_profile(name: str, configs: Path = CONFIGS) -> Profile:
    """Read configs/profile/<name>.yaml.

    Raises:
        ConfigError: no such profile, or a file with unknown or missing keys.
    """
    known = options("profile", configs)
    if name not in known:
        raise ConfigError([unknown("profile", name, [*known, AUTO])])
    values = read_yaml(configs / "profile" / f"{name}.yaml")
    values = {**values, "name": name} if isinstance(values, dict) else values
    problems = check_section(f"profile {name}", Profile, values)
    if problems:
        raise ConfigError(problems)
    return Profile(**values)


def encoder_for(profile: Profile, encoder: str) -> str:
    """Return the backbone that stands for the paper's ``encoder``.

    Raises:
        ConfigError: the profile has none.
    """
    backbone = profile.encoders.get(encoder)
    if backbone is None:
        wrong = f"it has no encoder in place of {encoder}"
        raise ConfigError([Problem("profile", profile.name, "another profile", wrong)])
    return backbone


def choose(encoder: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return ``paper`` or ``embedded`` for PROFILE=auto, and the lines that say why.

    ``words`` are the overrides typed: a folder given there need not be asked from the hub.
    """
    lacking = what_paper_lacks(encoder, words)
    if not lacking:
        return "paper", ["profile auto -> paper: a CUDA GPU, the encoder and GLUE are available"]
    first, *rest = lacking
    lines = [f"profile auto -> embedded: {first}"]
    return "embedded", [*lines, *(f"  {reason}" for reason in rest), f"  {HOW_TO_PAPER}"]


def what_paper_lacks(encoder: str, words: Sequence[str]) -> list[str]:
    """Return what keeps the paper's profile from running here, each with its reason."""
    if gpu_count() == 0:
        return ["no CUDA GPU is visible"]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    raw = read_yaml(CONFIGS / "backbone" / f"{encoder}.yaml")
    needs = [(given.get("backbone.path", raw["path"]), "model")]
    if "data.dir" not in given:
        needs.append((REPOSITORY, "dataset"))
    return describe(unavailable(needs))


def gpu_count() -> int:
    """Return how many CUDA (or ROCm) GPUs torch can use; torch is loaded only if there is one."""
    if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
        return 0
    import torch

    return torch.cuda.device_count()


def gpu_names(count: int) -> list[str]:
    """Return what to put in CUDA_VISIBLE_DEVICES for each of ``count`` GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]
