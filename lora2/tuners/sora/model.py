"""SoRA as a PEFT method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from lora2.tuners.mixed_batch import refuse_mixed_batch
from lora2.tuners.replace import replace_module
from lora2.tuners.sora.config import SoraConfig
from lora2.tuners.sora.gates import GateOptimizer
from lora2.tuners.sora.layer import SoraLinear


class SoraModel(BaseTuner):
    """Adapts a model with SoRA; made by ``get_peft_model(model, SoraConfig(...))``.

    In training mode ``sparse_lambda`` mean |g| is added to the loss that the model returns. A
    training loop calls ``prepare_training(total_step)`` once, and ``before_optimizer_step(step)``
    between backward and optimizer.step(); ``Lora2Callback`` does so in transformers' Trainer.
    """

    prefix = "sora_"
    tuner_layer_cls = SoraLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _enable_peft_forward_hooks = refuse_mixed_batch
    peft_config: dict[str, SoraConfig]
    gate_optimizer: GateOptimizer | None = None
    sparsity_seen = False

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **unused: Any,
    ) -> None:
        if isinstance(target, SoraLinear):
            target.update_layer(adapter_name, peft_config)
            return
        layer = SoraLinear(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        replace_module(parent, child_name, new_module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.model(*args, **kwargs)
        # the model's own flag: a fresh PeftModel around a model in eval mode says training=True
        if not self.model.training:
            return outputs
        if isinstance(outputs, tuple):
            # without return_dict the loss comes first, and only when there are labels
            if kwargs.get("labels") is None:
                return outputs
            return (outputs[0] + self.sparsity_loss(), *outputs[1:])
        if isinstance(getattr(outputs, "loss", None), Tensor):
            outputs.loss = outputs.loss + self.sparsity_loss()
        return outputs

    def layers(self, adapter_name: str) -> Iterator[tuple[str, SoraLinear]]:
        """(module name, layer) of every layer that has this adapter."""
        for name, module in self.model.named_modules():
            if isinstance(module, SoraLinear) and adapter_name in module.sora_gate:
                yield name, module

    def sparsity_loss(self) -> Tensor:
        """sparse_lambda mean |g| over all gates of the active adapter, a scalar.

        A model called with labels has it in its loss; a loss made from logits must add it.
        """
        self.sparsity_seen = True
        name = self._trained_adapter()
        config = self.peft_config[name]
        if self.gate_optimizer is not None and self.gate_optimizer.config is config:
            gates = list(self.gate_optimizer.gates.values())  # spares a walk through the model
        else:
            gates = [layer.sora_gate[name] for _, layer in self.layers(name)]
        return config.sparse_lambda * torch.cat(gates).abs().mean()

    def _trained_adapter(self) -> str:
        if len(self.active_adapters) != 1:
            raise ValueError(
                f"SoRA trains one adapter at a time, and {self.active_adapters} are active; call "
                f"set_adapter(name) first"
            )
        return self.active_adapters[0]

    def prepare_training(self, total_step: int) -> None:
        """Make the gates' optimizer for a training of ``total_step`` optimizer steps.

        Raises:
            ValueError: ``total_step`` is below 1 or below the number of xi stages, the gates are
                frozen, or they are in a precision that swallows xi.
        """
        adapter = self._trained_adapter()
        config = self.peft_config[adapter]
        gates = {name: layer.sora_gate[adapter] for name, layer in self.layers(adapter)}
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
        self.sparsity_seen = False

    def _prepared(self) -> GateOptimizer:
        if self.gate_optimizer is None:
            raise RuntimeError(
                "SoRA: call prepare_training(total_step) before training, or pass Lora2Callback() "
                "to the Trainer"
            )
        return self.gate_optimizer

    def before_optimizer_step(self, step: int) -> None:
        """Step the gates; afterwards their .grad is None, so that the main optimizer skips them.

        Args:
            step: the number of this optimizer step, from 1.

        Raises:
            RuntimeError: training was not prepared, or sparse_lambda > 0 never reached a loss.
        """
        optimizer = self._prepared()
        if optimizer.config.sparse_lambda > 0 and not self.sparsity_seen:
            raise RuntimeError(
                "SoRA: the term sparse_lambda mean |g| is not in the loss, because the model was "
                "called without labels; pass labels (no label smoothing in the Trainer), or add "
                "model.base_model.sparsity_loss() to your loss"
            )
        optimizer.step(step)

    def training_state(self) -> dict[str, Tensor]:
        """The gate optimizer's state, flat, for safetensors; ``load_training_state`` reads it."""
        return self._prepared().state()

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue where ``training_state`` was taken; after ``prepare_training``."""
        self._prepared().load_state(state)

    def finish_training(self) -> None:
        """Check that the proximal steps happened.

        Raises:
            RuntimeError: they did not, so that this was a LoRA with gates and not SoRA.
        """
        if self._prepared().driven == 0:
            raise RuntimeError(
                "SoRA: no proximal step was made in this training; call "
                "before_optimizer_step(step) in every step, or pass Lora2Callback() to the Trainer"
            )
        if all(all(kept) for kept in self.kept_ranks().values()):
            warnings.warn(
                "SoRA: no gate is zero; a larger xi or sparse_lambda, or more steps, would prune",
                stacklevel=2,
            )

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r gates are not zero."""
        name = self._trained_adapter()
        return {key: (layer.sora_gate[name] != 0).tolist() for key, layer in self.layers(name)}
