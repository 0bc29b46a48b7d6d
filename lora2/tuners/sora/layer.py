"""A linear layer with a gated low-rank update (SoRA)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.replace import base_linear, merge_into_base, unmerge_from_base, wide
from lora2.tuners.sora.config import SoraConfig


class SoraLinear(nn.Module, BaseTunerLayer):
    """base(x) + s ((dropout(x) A^T) * g) B^T, with A (r, d_in), g (r,) and B (d_out, r)."""

    adapter_layer_names = ("sora_A", "sora_B", "sora_gate")
    other_param_names = ("r", "scaling", "sora_dropout")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: SoraConfig, module_name: str
    ) -> None:
        super().__init__()
        linear = base_linear(base_layer, module_name)
        self.base_layer = base_layer
        self.fan_in_fan_out = isinstance(linear, Conv1D)
        # Conv1D keeps its weight as (d_in, d_out), nn.Linear as (d_out, d_in)
        shape = linear.weight.shape if self.fan_in_fan_out else linear.weight.shape[::-1]
        self.in_features, self.out_features = shape
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.sora_dropout = nn.ModuleDict()
        self.sora_A = nn.ParameterDict()
        self.sora_B = nn.ParameterDict()
        self.sora_gate = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: SoraConfig) -> None:
        """Add the adapter: A kaiming-uniform, B zero, gates from N(0, 1)."""
        r = config.r
        self.r[adapter_name] = r
        self.scaling[adapter_name] = config.lora_alpha / r
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.sora_dropout[adapter_name] = dropout
        self.sora_A[adapter_name] = nn.Parameter(torch.empty(r, self.in_features))
        self.sora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, r))
        self.sora_gate[adapter_name] = nn.Parameter(torch.randn(r))
        nn.init.kaiming_uniform_(self.sora_A[adapter_name], a=math.sqrt(5))
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.sora_B[adapter_name], a=math.sqrt(5))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """s B diag(g) A in float32 at least, in the layout of the base weight."""
        gate = wide(self.sora_gate[adapter_name]) * self.scaling[adapter_name]  # (r,)
        b = wide(self.sora_B[adapter_name]) * gate
        delta = b @ wide(self.sora_A[adapter_name])  # (d_out, r), (r, d_in) -> (d_out, d_in)
        return delta.T if self.fan_in_fan_out else delta

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
            if name in self.sora_A:
                result = result + self._update(name, x)
        return result.to(dtype)

    def _update(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.sora_dropout[name](self._cast_input_dtype(x, self.sora_A[name].dtype))
        hidden = F.linear(x, self.sora_A[name])  # (..., d_in) -> (..., r)
        hidden = hidden * (self.sora_gate[name] * self.scaling[name])
        return F.linear(hidden, self.sora_B[name])  # (..., r) -> (..., d_out)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "sora." + super().__repr__()
