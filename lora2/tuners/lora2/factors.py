"""The five factors of the adapted matrices, one list for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

# Of a layer's tables, adapter name -> factor, in the order of ``Factors``.
FACTOR_NAMES = ("lora2_u", "lora2_v", "lora2_lambda", "lora2_U", "lora2_V")


class Factors(NamedTuple):
    """The parameters of n adapted matrices, in one fixed order.

    u: (d_in, k) each; v: (k, r); lam: (r,); U: (r, k); V: (k, d_out).
    """

    u: list[nn.Parameter]
    v: list[nn.Parameter]
    lam: list[nn.Parameter]
    U: list[nn.Parameter]
    V: list[nn.Parameter]


def factors_of(layers: Iterable[nn.Module], adapter_name: str) -> Factors:
    """The parameters of ``adapter_name`` in ``layers``, in their order."""
    found = Factors([], [], [], [], [])
    for layer in layers:
        # Past the attribute look-up of nn.Module, which at 72 layers costs 0.5 ms a forward pass.
        tables = layer._modules
        for parts, name in zip(found, FACTOR_NAMES, strict=True):
            factor = tables[name]._parameters.get(adapter_name)
            if factor is None:  # parametrised or pruned: not among the parameters
                factor = getattr(layer, name)[adapter_name]
            parts.append(factor)
    return found
