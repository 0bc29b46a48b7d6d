"""The adapted linear map: y = W0 x + b + s * x (u v) diag(lambda) (U V)  (Eq. 4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.factors import FACTOR_NAMES
from lora2.tuners.lora2.stacks import exact
from lora2.tuners.lora2.start import orthogonal_start

# What init_weights=False uses: large enough to see the update in any output.
_RANDOM_START_STD = 0.2


class Lora2Linear(nn.Module, BaseTunerLayer):
    """An ``nn.Linear`` or ``Conv1D`` with LoRA2 adapters beside it.

    A pruned singular value is a zero in ``lora2_lambda`` and a False in ``lora2_mask``; the forward
    reads ``lora2_lambda`` alone.
    """

    adapter_layer_names = FACTOR_NAMES
    other_param_names = ("r", "k", "lora_alpha", "scaling", "lora2_dropout", "lora2_mask")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Lora2Config) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        base = self.get_base_layer()
        # Conv1D keeps its weight as (d_in, d_out), nn.Linear as (d_out, d_in).
        self.fan_in_fan_out = isinstance(base, Conv1D)
        d_in, d_out = base.weight.shape if self.fan_in_fan_out else base.weight.shape[::-1]
        self.in_features, self.out_features = int(d_in), int(d_out)
        self.r: dict[str, int] = {}
        self.k: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lora2_dropout = nn.ModuleDict()
        self.lora2_u = nn.ParameterDict()
        self.lora2_v = nn.ParameterDict()
        self.lora2_lambda = nn.ParameterDict()
        self.lora2_U = nn.ParameterDict()
        self.lora2_V = nn.ParameterDict()
        self.lora2_mask = BufferDict(persistent=True)
        # Of the forward pass under way: adapter -> pair, and whether gradients flow through it.
        self.cached_pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.cached_with_grad = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: Lora2Config) -> None:
        """Create the adapter ``adapter_name``, replacing one of that name."""
        r, k = config.r, config.k
        self.r[adapter_name], self.k[adapter_name] = r, k
        self.lora_alpha[adapter_name] = config.lora_alpha
        self.scaling[adapter_name] = config.lora_alpha / r
        self.lora2_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        )
        self.lora2_u[adapter_name] = nn.Parameter(torch.empty(self.in_features, k))
        self.lora2_v[adapter_name] = nn.Parameter(torch.empty(k, r))
        self.lora2_lambda[adapter_name] = nn.Parameter(torch.empty(r))
        self.lora2_U[adapter_name] = nn.Parameter(torch.empty(r, k))
        self.lora2_V[adapter_name] = nn.Parameter(torch.empty(k, self.out_features))
        self.lora2_mask[adapter_name] = torch.ones(r, dtype=torch.bool)
        self._reset_parameters(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _reset_parameters(self, adapter_name: str, config: Lora2Config) -> None:
        four = [f[adapter_name] for f in (self.lora2_u, self.lora2_v, self.lora2_U, self.lora2_V)]
        if config.init_weights == "orthogonal":
            orthogonal_start(*four)
        else:
            for factor in four:
                std = config.init_std if config.init_weights else _RANDOM_START_STD
                nn.init.normal_(factor, std=std)
        if config.init_weights:
            nn.init.zeros_(self.lora2_lambda[adapter_name])
        else:
            nn.init.normal_(self.lora2_lambda[adapter_name])

    def core(self, adapter_name: str, dtype: torch.dtype | None = None) -> Tensor:
        """s * v diag(lambda) U, the (k, k) middle of the update, in ``dtype`` if given."""
        v, lam, U = (
            factors[adapter_name].to(dtype=dtype) if dtype else factors[adapter_name]
            for factors in (self.lora2_v, self.lora2_lambda, self.lora2_U)
        )
        return (v * (self.scaling[adapter_name] * lam)) @ U  # (k, r) @ (r, k) -> (k, k)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The dense update in the layout of the base weight and in float32 at least.

        (d_out, d_in) for ``nn.Linear``, (d_in, d_out) for ``Conv1D``.
        """
        u, V = self.lora2_u[adapter_name], self.lora2_V[adapter_name]
        dtype = torch.promote_types(u.dtype, torch.float32)
        delta = u.to(dtype) @ (self.core(adapter_name, dtype) @ V.to(dtype))  # (d_in, d_out)
        return delta if self.fan_in_fan_out else delta.T

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of ``adapter_names`` (None: the active ones) to the base weight.

        Raises:
            ValueError: with ``safe_merge``, the merged weight would not be finite.
        """
        for name in self._mine(check_adapters_to_merge(self, adapter_names)):
            weight = self.get_base_layer().weight
            delta = self.get_delta_weight(name).detach()
            if safe_merge:
                merged = weight.data + delta.to(weight.dtype)
                if not torch.isfinite(merged).all():
                    raise ValueError(
                        f"NaNs detected in the merged weights: the adapter {name!r} is broken; "
                        f"the base weight was left as it was"
                    )
                weight.data = merged
            else:
                weight.data += delta
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract every merged update from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop()).detach()
            self.get_base_layer().weight.data -= delta

    def pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """u^T (k, d_in) and s * v diag(lambda) U V (k, d_out): the update as two products.

        In the dtype of autocast where it is on, rounded to it once.
        """
        pair = self.cached_pairs.get(adapter_name)
        if pair is not None and (not torch.is_grad_enabled() or self._may_differentiate()):
            return pair
        u, V = self.lora2_u[adapter_name], self.lora2_V[adapter_name]
        device = u.device.type
        with exact(device):
            first, second = u.T, self.core(adapter_name) @ V  # (k, d_in); (k, k) @ (k, d_out)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return first.to(dtype), second.to(dtype)
        return first, second

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., d_in) -> (..., d_out), in the base layer's output dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        names = self._mine(self.active_adapters)
        if not _is_plain(self.base_layer) or x.dim() < 2 or args or kwargs:
            result = self.base_layer(x, *args, **kwargs)
            for name in names:
                hidden, second = self._narrow(x, name)
                result = (result + hidden @ second).to(result.dtype)
            return result
        rows = x.flatten(0, -2)  # (..., d_in) -> (t, d_in)
        result = self.base_layer(rows)  # (t, d_out), nobody else's, so added to in place
        for hidden, second in [self._narrow(rows, name) for name in names]:
            if result.dtype == hidden.dtype == second.dtype:
                result.addmm_(hidden, second)  # (t, k) @ (k, d_out)
            else:
                result += hidden @ second
        return result.view(*x.shape[:-1], self.out_features)

    def _narrow(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(..., d_in) -> (..., k), and the (k, d_out) that is left to multiply by."""
        first, second = self.pair(name)
        if x.dtype != first.dtype:
            x = self._cast_input_dtype(x, first.dtype)
        if (dropout := self.lora2_dropout[name]).training:
            x = dropout(x)
        return nn.functional.linear(x, first), second

    def cache_pair(self, adapter_name: str, pair: tuple[Tensor, Tensor], with_grad: bool) -> None:
        """Keep the pair of ``adapter_name`` for the forward pass under way."""
        self.cached_pairs[adapter_name], self.cached_with_grad = pair, with_grad

    def _may_differentiate(self) -> bool:
        """Tell whether gradients can flow through the cached pair.

        Not if the tensors of this pass are hooked when saved, as checkpointing does: the backward
        pass then runs the layer again, after its pair was cleared, and must find the operations
        of the first time.
        """
        if not self.cached_with_grad or torch.compiler.is_compiling():
            return self.cached_with_grad
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is None

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: the update is added to the weight (see ``to_lora`` for an exact conversion)."""
        return True

    def _mine(self, adapter_names: Iterable[str]) -> list[str]:
        return [name for name in adapter_names if name in self.r]


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module is one product and a bias, and nobody looks on."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return type(module) is nn.Linear and not hooked and "forward" not in vars(module)
