"""One way of counting parameters for every method: adapter, what survives, head, encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from lora2.config.schema import Adalora, Backbone, Lora2, Method, Sora
from lora2.run.methods import in_head


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of parameters (scalars, not bytes)."""

    adapter: int  # trainable outside the head, at the start
    kept: int  # of these, what survives pruning
    head: int  # classifier (and pooler), trained in full by every method
    encoder: int  # the frozen or fully trained encoder itself


def count_encoder(base: nn.Module, backbone: Backbone) -> int:
    """Count the parameters outside the head of a model that no method has touched yet."""
    return sum(
        parameter.numel()
        for name, parameter in base.named_parameters()
        if not in_head(name, backbone.head_modules)
    )


def count_start(model: nn.Module, backbone: Backbone, encoder: int) -> Counts:
    """Count a prepared model before training; nothing is pruned yet."""
    adapter = head = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if in_head(name, backbone.head_modules):
            head += parameter.numel()
        else:
            adapter += parameter.numel()
    return Counts(adapter=adapter, kept=adapter, head=head, encoder=encoder)


def count_kept(start: int, method: Method, kept: Mapping[str, list[bool]], model: nn.Module) -> int:
    """Return the adapter parameters that survive.

    ``kept`` maps a matrix's module name to which of its singular values (or gates) survive. Each
    matrix counts with its true sizes:
    AdaLoRA n (d_in + d_out + 1); SoRA n (d_in + d_out + 1); LoRA2 k (d_in + d_out) + n (2 k + 1),
    and nothing where no singular value is left.
    """
    if not isinstance(method, Lora2 | Adalora | Sora) or not kept:
        return start
    total = 0
    for name, row in kept.items():
        layer = model.get_submodule(name)
        width, n = layer.in_features + layer.out_features, sum(row)
        if isinstance(method, Lora2):
            total += method.k * width + n * (2 * method.k + 1) if n else 0
        else:
            total += n * (width + 1)
    return total
