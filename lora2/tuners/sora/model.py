"""SoRA: a linear layer with a gated low-rank update, and the PEFT model of it."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora2.tuners.base import AdapterLayer, wide
from lora2.tuners.loss_term import LossTerm, TermModel, UndrivenCheck
from lora2.tuners.sora.config import SoraConfig
from lora2.tuners.sora.gates import GateOptimizer


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


class SoraModel(TermModel):
    """Adapts a model with SoRA; made by ``get_peft_model(model, SoraConfig(...))``.

    In training mode ``sparse_lambda`` mean |g| is added to the loss that the model returns; with
    another loss the gates' own step adds its gradient. A training loop calls
    ``prepare_training(total_step)`` once, and ``before_optimizer_step(step)`` between backward and
    optimizer.step(); ``Lora2Callback`` does so in transformers' Trainer.
    """

    prefix = "sora_"
    tuner_layer_cls = SoraLinear
    gate_optimizer: GateOptimizer | None = None
    _undriven: UndrivenCheck | None = None

    def _gates(self, adapter: str) -> dict[str, nn.Parameter]:
        return {
            name: layer.sora_gate[adapter] for name, layer in self.adapted_layers(adapter).items()
        }

    def _watch(self, adapter: str, saving: bool) -> None:
        """Warn once if optimiser steps pass in which the gates are not stepped."""
        if self.gate_optimizer is not None and self.gate_optimizer.driven:
            return
        self._undriven = self._undriven or UndrivenCheck()
        version = next(iter(self._gates(adapter).values()))._version
        if self._undriven.should_warn(version, saving):
            warnings.warn(
                "SoRA: the gates are not stepped, so none will be pruned: train with "
                "callbacks=[Lora2Callback()], or call prepare_training(total_step), and "
                "before_optimizer_step(step) before each optimizer.step()",
                stacklevel=2,
            )

    def sparsity_loss(self) -> Tensor:
        """sparse_lambda mean |g| over all gates of the active adapter, a scalar.

        A loss that the model returns has it already; with any other, ``before_optimizer_step``
        adds its gradient.
        """
        name, config = self._trained()
        gates = torch.cat(list(self._gates(name).values()))
        return self._term.watch(config.sparse_lambda * gates.abs().mean())

    _loss_term = sparsity_loss

    def prepare_training(self, total_step: int) -> None:
        """Make the gates' optimizer for a training of ``total_step`` optimizer steps.

        Raises:
            ValueError: ``total_step`` is below 1 or below the number of xi stages, the gates are
                frozen, or they are in a precision in which xi is lost.
        """
        adapter, config = self._trained()
        gates = self._gates(adapter)
        if total_step < max(1, config.xi_stages):
            raise ValueError(
                f"SoRA: {total_step} optimizer steps are fewer than the {config.xi_stages} stages "
                f"of xi; train longer or lower xi_stages"
            )
        for name, gate in gates.items():
            if not gate.requires_grad:
                raise ValueError(
                    f"SoRA: the gate of {name} is frozen; load the adapter with is_trainable=True"
                )
            if gate.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"SoRA: the gate of {name} is {gate.dtype}, in which a shrinkage of xi = "
                    f"{config.xi} is lost; leave autocast_adapter_dtype=True"
                )
        self.gate_optimizer = GateOptimizer(gates, config, total_step)
        self._term = LossTerm()

    def _prepared(self) -> GateOptimizer:
        if self.gate_optimizer is None:
            raise RuntimeError(
                "SoRA: call prepare_training(total_step) before training, or pass Lora2Callback() "
                "to the Trainer"
            )
        return self.gate_optimizer

    def before_optimizer_step(self, step: int) -> None:
        """Step the gates; afterwards their .grad is None, so that the main optimizer skips them.

        The gradient of the L1 term is added if no backward pass reached it.

        Args:
            step: the number of this optimizer step, from 1.

        Raises:
            RuntimeError: training was not prepared, or no gate has a gradient.
        """
        self._prepared().step(step, with_term=self._term.missing())

    def training_state(self) -> dict[str, Tensor]:
        """The gate optimizer's state, flat, for safetensors; ``load_training_state`` reads it."""
        return self._prepared().state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue where ``training_state`` was taken; after ``prepare_training``."""
        self._prepared().load_state(state)

    def finish_training(self) -> None:
        """Check that the proximal steps happened, and what they left; see ``GateOptimizer``."""
        self._prepared().check_finished()

    def kept_parameters(self) -> int:
        """Return how many numbers of the active adapter survive: d_in + d_out + 1 for each gate."""
        return sum(
            sum(gates) * (layer.in_features + layer.out_features + 1)
            for name, gates in self.kept_ranks().items()
            for layer in [self.model.get_submodule(name)]
        )

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r gates are not zero, for the active adapter."""
        gates = self._gates(self._active()[0])
        return {name: (gate != 0).tolist() for name, gate in gates.items()}
