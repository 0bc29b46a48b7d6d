"""LoRA-XS (arXiv 2405.17604) as a PEFT method: a trained r x r core in a frozen SVD basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from lora2.tuners.base import AdapterLayer, AdapterModel, wide
from lora2.tuners.base_config import AdapterConfig, Rules, non_negative, register


@dataclass
class LoraXsConfig(AdapterConfig):
    """x W0 + s x A R B with s = lora_alpha / r; only R (r, r) is trained.

    A (d_in, r) = U_r Sigma_r and B (r, d_out) = V_r^T are the truncated singular value
    decomposition of the frozen W0 (d_in, d_out), as in the paper and its code.

    Args:
        r: rank, at most min(d_in, d_out) of every target (published: 4 to 25, lora_alpha 16,
            dropout 0, and for RoBERTa the targets query, value, attention.output.dense,
            output.dense). All other arguments of ``AdapterConfig`` as there.
        init_std: standard deviation of R at the start.

    A and B are saved with the adapter: the same update on every machine.
    """

    r: int = 16
    init_std: float = 1e-5

    method = "LORA_XS"

    def _rules(self) -> Rules:
        return super()._rules() | {"init_std": non_negative(self.init_std)}


class LoraXsLinear(AdapterLayer):
    """base(x) + s dropout(x) A R B, with A (d_in, r), R (r, r) and B (r, d_out)."""

    adapter_layer_names = ("loraxs_R",)
    other_param_names = ("r", "scaling", "loraxs_dropout", "loraxs_A", "loraxs_B")

    loraxs_R: nn.ParameterDict
    loraxs_A: Any  # BufferDict
    loraxs_B: Any

    def _create_containers(self, config: LoraXsConfig) -> None:
        self.loraxs_A, self.loraxs_B = BufferDict(persistent=True), BufferDict(persistent=True)

    def _create(self, adapter_name: str, config: LoraXsConfig) -> None:
        """Take A and B from the frozen weight, R from N(0, init_std^2)."""
        r = config.r
        if r > min(self.in_features, self.out_features):
            raise ValueError(
                f"{self.module_name} is {self.in_features} x {self.out_features} and has no {r} "
                f"singular values; lower r, or take it out of target_modules"
            )
        self.loraxs_R[adapter_name] = nn.Parameter(torch.empty(r, r))
        nn.init.normal_(self.loraxs_R[adapter_name], std=config.init_std)
        if self.loraxs_R[adapter_name].is_meta:
            # low_cpu_mem_usage loading: R is a placeholder, and the file brings A and B too
            a = torch.full((self.in_features, r), torch.nan)
            b = torch.full((r, self.out_features), torch.nan)
        else:
            weight = self.get_base_weight().detach().float()
            for merged in self.merged_adapters:
                weight = weight - self.get_delta_weight(merged).float()
            a, b = truncated_svd(weight if self.fan_in_fan_out else weight.T, r)
        self.loraxs_A[adapter_name], self.loraxs_B[adapter_name] = a, b

    def thin_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """s A R (d_in, r) and B (r, d_out)."""
        core = wide(self.loraxs_R[adapter_name]) * self.scaling[adapter_name]
        return wide(self.loraxs_A[adapter_name]) @ core, wide(self.loraxs_B[adapter_name])

    def pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        first, second = self.thin_factors(adapter_name)
        return first.T, second

    def _narrow(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Tensor]:
        a, b = self.loraxs_A[adapter_name], self.loraxs_B[adapter_name]
        core = self.loraxs_R[adapter_name].to(a.dtype) * self.scaling[adapter_name]
        return self._dropped(x, adapter_name, a.dtype) @ a @ core, b


class LoraXsModel(AdapterModel):
    """What ``get_peft_model(model, LoraXsConfig(...)).base_model`` is; it needs no callback."""

    prefix = "loraxs_"
    tuner_layer_cls = LoraXsLinear


def truncated_svd(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """A (d_in, r) = U_r Sigma_r and B (r, d_out) = V_r^T of W (d_in, d_out).

    The entry of U's column with the largest magnitude is made positive, so that the same weight
    gives the same A and B whatever library computes them.
    """
    u, sigma, vh = torch.linalg.svd(weight, full_matrices=False)
    u, sigma, vh = u[:, :r], sigma[:r], vh[:r]
    largest = u.abs().argmax(dim=0, keepdim=True)  # (d_in, r) -> (1, r)
    sign = u.gather(0, largest).sign()
    return (u * (sign * sigma)).contiguous(), (vh * sign.T).contiguous()


register("lora_xs", LoraXsConfig, LoraXsModel)
