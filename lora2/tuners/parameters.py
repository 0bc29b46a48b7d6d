"""Adapters of stacked weights, such as the experts of a mixture (``target_parameters``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StackedAdapters(nn.Module):
    """A module whose parameters W (E, d_out, d_in), (E, d_in, d_out) or (d_out, d_in) are adapted.

    Each of the E matrices has an adapter of its own. The module runs with W + dW in place of W: dW
    is formed, as by PEFT's LoRA, which is never done beside an ``nn.Linear``. As there, the order
    is (E, d_in, d_out) if the module has a true ``is_transposed``. Not thread-safe.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.stacks = base_layer, nn.ModuleDict()

    def adapt(self, name: str, layer_cls: Any, adapter_name: str, config: Any, key: str) -> None:
        """Give the parameter ``name`` the adapter ``adapter_name``; a TypeError if it cannot be."""
        weight: Tensor = getattr(self.base_layer, name)
        if weight.dim() not in (2, 3) or not weight.is_floating_point():
            raise TypeError(
                f"{key} is a {weight.dtype} parameter of {weight.dim()} dimensions; only "
                f"floating-point parameters of 2 or 3 can be adapted: take it out of "
                f"target_parameters"
            )
        if name in self.stacks:
            for layer in self.layers(name):
                layer.update_layer(adapter_name, config)
            return
        matrices = [_Matrix(self.base_layer, name, at) for at in range(len(_stack(weight)))]
        layers = [layer_cls(m, adapter_name, config, f"{key}[{m.at}]") for m in matrices]
        self.stacks[name] = nn.ModuleList(layers)

    def layers(self, name: str) -> list[Any]:
        """Return the E adapted layers of the parameter ``name``."""
        return list(self.stacks[name].children())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the adapted weights."""
        weights = vars(self.base_layer)  # Python looks here before it looks among the parameters
        try:
            for name in self.stacks:
                weights[name] = self._adapted(name)
            return self.base_layer(*args, **kwargs)
        finally:
            for name in self.stacks:
                weights.pop(name, None)

    def _adapted(self, name: str) -> Tensor:
        weight, layers = getattr(self.base_layer, name), self.layers(name)
        if layers[0].disable_adapters and layers[0].merged:
            for layer in layers:
                layer.unmerge()
        stack = _stack(weight)
        for adapter in layers[0].active_adapters:
            if adapter in layers[0].r and not (layers[0].disable_adapters or layers[0].merged):
                pairs = zip(*(layer.pair(adapter) for layer in layers), strict=True)
                left, right = (torch.stack(part).to(stack.dtype) for part in pairs)
                if not _is_transposed(self.base_layer, weight):
                    left, right = right, left
                # (E, d_out, d_in) + (E, d_out, k) @ (E, k, d_in), or with d_in first
                stack = torch.baddbmm(stack, left.mT, right)
        return stack.view_as(weight)

    def unload_and_optionally_merge_module(self, merge: bool, **kwargs: Any) -> nn.Module:
        """Return the module without adapters; see ``AdapterLayer.merge``."""
        for layer in [layer for name in self.stacks for layer in self.layers(name) if merge]:
            layer.merge(**kwargs)
        return self.base_layer


class _Matrix(nn.Linear):
    """One matrix of a stacked parameter, looked up in the module that holds it."""

    def __init__(self, owner: nn.Module, name: str, at: int) -> None:
        nn.Module.__init__(self)
        vars(self)["owner"] = owner  # past nn.Module, which would register it once more
        self.name, self.at, self.bias = name, at, None  # type: ignore[assignment]
        self.out_features, self.in_features = self.weight.shape

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """A view, (d_out, d_in)."""
        owner: Any = self.owner
        weight: Tensor = owner._parameters[self.name]
        matrix: Tensor = _stack(weight)[self.at]
        return matrix.mT if _is_transposed(owner, weight) else matrix


def _stack(weight: Tensor) -> Tensor:
    """(d_out, d_in) -> (1, d_out, d_in)"""
    return weight if weight.dim() == 3 else weight[None]


def _is_transposed(module: Any, weight: Tensor) -> bool:
    return weight.dim() == 3 and bool(getattr(module, "is_transposed", False))
