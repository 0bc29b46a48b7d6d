"""A linear layer with the update A R B of LoRA-XS, A and B frozen."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.lora_xs.basis import frozen_weight, truncated_svd
from lora2.tuners.lora_xs.config import LoraXsConfig
from lora2.tuners.replace import base_linear, merge_into_base, unmerge_from_base, wide


class LoraXsLinear(nn.Module, BaseTunerLayer):
    """base(x) + s dropout(x) A R B, with A (d_in, r), R (r, r) and B (r, d_out)."""

    adapter_layer_names = ("loraxs_R",)
    other_param_names = ("r", "scaling", "loraxs_dropout", "loraxs_A", "loraxs_B")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: LoraXsConfig, module_name: str
    ) -> None:
        super().__init__()
        linear = base_linear(base_layer, module_name)
        self.base_layer = base_layer
        self.module_name = module_name
        self.fan_in_fan_out = isinstance(linear, Conv1D)
        # Conv1D keeps its weight as (d_in, d_out), nn.Linear as (d_out, d_in)
        shape = linear.weight.shape if self.fan_in_fan_out else linear.weight.shape[::-1]
        self.in_features, self.out_features = shape
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.loraxs_dropout = nn.ModuleDict()
        self.loraxs_R = nn.ParameterDict()
        self.loraxs_A = BufferDict(persistent=config.save_basis)
        self.loraxs_B = BufferDict(persistent=config.save_basis)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: LoraXsConfig) -> None:
        """Add the adapter: A and B from the frozen weight, R ~ N(0, init_std^2).

        Raises:
            ValueError: r > min(d_in, d_out).
        """
        r = config.r
        if r > min(self.in_features, self.out_features):
            raise ValueError(
                f"{self.module_name} is {self.in_features} x {self.out_features} and has no {r} "
                f"singular values; lower r, or take it out of target_modules"
            )
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.lora_alpha / r
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.loraxs_dropout[adapter_name] = dropout
        self.loraxs_R[adapter_name] = nn.Parameter(torch.empty(r, r))
        nn.init.normal_(self.loraxs_R[adapter_name], std=config.init_std)
        a, b = self._basis(adapter_name, config)
        self.loraxs_A[adapter_name], self.loraxs_B[adapter_name] = a, b
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _basis(self, adapter_name: str, config: LoraXsConfig) -> tuple[torch.Tensor, torch.Tensor]:
        if config.save_basis and self.loraxs_R[adapter_name].is_meta:
            # low_cpu_mem_usage loading: R is a placeholder, and the file brings A and B too
            nan = self.get_base_layer().weight.new_full((), torch.nan)
            r = config.r
            return nan.repeat(self.in_features, r), nan.repeat(r, self.out_features)
        weight = frozen_weight(self)
        return truncated_svd(weight if self.fan_in_fan_out else weight.T, config.r)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """s A R B in float32 at least, in the layout of the base weight."""
        core = wide(self.loraxs_R[adapter_name]) * self.scaling[adapter_name]
        # (d_in, r), (r, r), (r, d_out) -> (d_in, d_out)
        delta = wide(self.loraxs_A[adapter_name]) @ core @ wide(self.loraxs_B[adapter_name])
        return delta if self.fan_in_fan_out else delta.T

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """See ``lora2.tuners.replace.merge_into_base``."""
        merge_into_base(self, safe_merge, adapter_names)

    def unmerge(self) -> None:
        """Undo every merge."""
        unmerge_from_base(self)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., d_in) -> (..., d_out)"""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.loraxs_R:
                result = result + self._update(name, x)
        return result.to(dtype)

    def _update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        a, b = self.loraxs_A[name], self.loraxs_B[name]
        core = self.loraxs_R[name].to(a.dtype) * self.scaling[name]
        x = self.loraxs_dropout[name](self._cast_input_dtype(x, a.dtype))
        return x @ a @ core @ b  # (..., d_in) -> (..., r) -> (..., r) -> (..., d_out)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "lora_xs." + super().__repr__()
