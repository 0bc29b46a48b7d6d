"""A linear layer with a gated low-rank update (SoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora2.tuners.base import AdapterLayer, wide
from lora2.tuners.sora.config import SoraConfig


class SoraLinear(AdapterLayer):
    """base(x) + s ((dropout(x) A^T) * g) B^T, with A (r, d_in), g (r,) and B (d_out, r)."""

    adapter_layer_names = ("sora_A", "sora_B", "sora_gate")
    other_param_names = ("r", "scaling", "sora_dropout")
    dropout_name = "sora_dropout"

    def _create_containers(self, config: SoraConfig) -> None:
        self.sora_A = nn.ParameterDict()
        self.sora_B = nn.ParameterDict()
        self.sora_gate = nn.ParameterDict()

    def _create(self, adapter_name: str, config: SoraConfig) -> None:
        """Start with A kaiming-uniform, B zero, gates from N(0, 1)."""
        self.sora_A[adapter_name] = nn.Parameter(torch.empty(config.r, self.in_features))
        self.sora_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, config.r))
        self.sora_gate[adapter_name] = nn.Parameter(torch.randn(config.r))
        nn.init.kaiming_uniform_(self.sora_A[adapter_name], a=math.sqrt(5))
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.sora_B[adapter_name], a=math.sqrt(5))

    def thin_factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """A^T (d_in, kept) and s diag(g) B^T (kept, d_out) of the gates that are not zero."""
        gate = self.sora_gate[adapter_name]
        kept = gate.nonzero().squeeze(1)  # (r,) -> (kept,)
        scaled = wide(gate[kept]) * self.scaling[adapter_name]
        first, second = self.sora_A[adapter_name][kept].T, self.sora_B[adapter_name][:, kept]
        return wide(first), (wide(second) * scaled).T

    def _narrow(self, x: Tensor, adapter_name: str) -> tuple[Tensor, Tensor]:
        A, B = self.sora_A[adapter_name], self.sora_B[adapter_name]
        hidden = linear(self._dropped(x, adapter_name, A.dtype), A)  # (..., d_in) -> (..., r)
        return hidden * (self.sora_gate[adapter_name] * self.scaling[adapter_name]), B.T
