"""BitFit (arXiv 2106.10199): biases and the head, nothing added."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def train_biases(model: nn.Module, head_modules: Sequence[str]) -> None:
    """Freeze everything but biases and the head."""
    for name, parameter in model.named_parameters():
        head = in_head(name, head_modules)
        parameter.requires_grad_(head or name.split(".")[-1] == "bias")


def in_head(name: str, head_modules: Sequence[str]) -> bool:
    """Tell whether a parameter's dotted name lies in one of the head's modules."""
    return any(part in head_modules for part in name.split("."))
