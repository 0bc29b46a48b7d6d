"""All matrices that one adapter adapts, and the stacks that serve them during a forward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from lora2.tuners.lora2.factors import Factors, factors_of
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.stacks import (
    Stacks,
    by_shape,
    stack_groups,
    thin_pairs,
    untracked_pairs,
)


class Adapted:
    """The layers of ``adapter`` by module name, in the model's order."""

    def __init__(self, adapter: str, layers: dict[str, Lora2Linear]) -> None:
        self.adapter, self.layers = adapter, layers
        factors, in_order = self.factors(), list(layers.values())
        groups = by_shape(factors.u, factors.V)
        self._sizes = [len(group) for group in groups]
        self._sorted = [in_order[at] for group in groups for at in group]
        self._stacks: Stacks | None = None  # of the forward pass under way

    def factors(self) -> Factors:
        """The parameters of every layer."""
        return factors_of(self.layers.values(), self.adapter)

    def masks(self) -> list[Tensor]:
        """Which singular values are kept, (r,) for each layer."""
        return [layer.lora2_mask[self.adapter] for layer in self.layers.values()]

    def stacks(self) -> Stacks:
        """The parameters stacked, on one device: those handed out, or new ones."""
        if self._stacks is not None:
            return self._stacks
        factors = factors_of(self._sorted, self.adapter)
        if not self._alike(factors):  # a model split over devices, or of several dtypes
            device, dtype = factors.lam[0].device, _widest(factors.lam)
            factors = Factors(*([one.to(device, dtype) for one in part] for part in factors))
        return stack_groups(self._sizes, *factors)

    def is_on(self) -> bool:
        """Whether a forward pass goes through these layers, with the adapter beside the weights."""
        first = next(iter(self.layers.values()), None)
        return first is not None and not (first.disable_adapters or first.merged)

    def hand_out(self) -> None:
        """Stack the parameters once and hand each layer its pair, if it is on.

        A layer that is handed nothing computes the same from its own parameters.
        """
        if not self.is_on() or not self._alike(f := factors_of(self._sorted, self.adapter)):
            return
        scaling, tracked = self._sorted[0].scaling[self.adapter], torch.is_grad_enabled()
        if tracked or torch.is_autocast_enabled(f.lam[0].device.type):
            self._stacks = stack_groups(self._sizes, *f)
            pairs = thin_pairs(self._stacks, scaling)
        else:
            pairs = untracked_pairs(self._sizes, *f, scaling)
        for layer, pair in zip(self._sorted, pairs, strict=True):
            layer.cache_pair(self.adapter, pair, with_grad=tracked)

    def take_back(self) -> None:
        """Forget what was handed out."""
        self._stacks = None
        for layer in self._sorted:
            layer.cached_pairs.clear()

    def _alike(self, factors: Factors) -> bool:
        """Whether the parameters can be stacked: one device, dtype and scaling."""
        kinds = {(u.device, u.dtype) for u in factors.u}
        scalings = {layer.scaling[self.adapter] for layer in self.layers.values()}
        return len(kinds) == len(scalings) == 1


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
