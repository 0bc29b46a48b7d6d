"""SoRA as a PEFT method."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
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
from lora2.tuners.term import OwnTerm, add_to_loss, hook_forward, unhook_forward
from lora2.tuners.undriven import Undriven


class SoraModel(BaseTuner):
    """Adapts a model with SoRA; made by ``get_peft_model(model, SoraConfig(...))``.

    In training mode ``sparse_lambda`` mean |g| is added to the loss that the model returns; with
    another loss the gates' own step adds its gradient. A training loop calls
    ``prepare_training(total_step)`` once, and ``before_optimizer_step(step)`` between backward and
    optimizer.step(); ``Lora2Callback`` does so in transformers' Trainer.
    """

    prefix = "sora_"
    tuner_layer_cls = SoraLinear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _enable_peft_forward_hooks = refuse_mixed_batch
    peft_config: dict[str, SoraConfig]
    gate_optimizer: GateOptimizer | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._term = OwnTerm()
        self._undriven = Undriven()
        # On the wrapped model: a PeftModel without a task type calls it past this class.
        handles = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._add_term, with_kwargs=True),
            self.model.register_state_dict_pre_hook(partial(self._watch_training, saving=True)),
        ]
        hook_forward(self.model, self, handles)

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

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        unhook_forward(model)
        return model

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        training = module.training and torch.is_grad_enabled()
        if training and not torch.compiler.is_compiling() and self._is_training():
            self._watch_training()
            self._term.begin(m for m in module.modules() if isinstance(m, SoraLinear))

    def _watch_training(self, *_: Any, saving: bool = False) -> None:
        """Warn once where optimiser steps go by in which nobody steps the gates."""
        driven = self.gate_optimizer is not None and self.gate_optimizer.driven
        if driven or not self._is_training():
            return
        layer = self._first_layer()
        assert layer is not None
        if self._undriven.to_say(layer.sora_gate[self._active()[0]]._version, saving):
            warnings.warn(
                "SoRA: nobody steps the gates, so none will be pruned: train with "
                "callbacks=[Lora2Callback()], or call prepare_training(total_step), and "
                "before_optimizer_step(step) before each optimizer.step()",
                stacklevel=2,
            )

    def _add_term(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        self._term.end()
        # the model's own flag: a fresh PeftModel around a model in eval mode says training=True
        if not (module.training and self._is_training()) or self._term.recomputed:
            return output
        return add_to_loss(module, kwargs, output, self.sparsity_loss)

    def _is_training(self) -> bool:
        """Whether a forward now goes through the gates of an adapter that is trained."""
        layer = self._first_layer()
        if layer is None or layer.disable_adapters or layer.merged:
            return False
        configs = [self.peft_config[name] for name in self._active() if name in self.peft_config]
        return any(not config.inference_mode for config in configs)

    def _first_layer(self) -> SoraLinear | None:
        return next((m for m in self.model.modules() if isinstance(m, SoraLinear)), None)

    def _active(self) -> list[str]:
        """The active adapters. transformers' own set_adapter tells nobody but the layers."""
        layer = self._first_layer()
        several = len(self.active_adapters) > 1
        return self.active_adapters if layer is None or several else layer.active_adapters

    def layers(self, adapter_name: str) -> Iterator[tuple[str, SoraLinear]]:
        """(module name, layer) of every layer that has this adapter."""
        for name, module in self.model.named_modules():
            if isinstance(module, SoraLinear) and adapter_name in module.sora_gate:
                yield name, module

    def sparsity_loss(self) -> Tensor:
        """sparse_lambda mean |g| over all gates of the active adapter, a scalar.

        A loss that the model returns has it already; with any other, ``before_optimizer_step``
        gives its gradient.
        """
        name = self._trained_adapter()
        config = self.peft_config[name]
        if self.gate_optimizer is not None and self.gate_optimizer.config is config:
            gates = list(self.gate_optimizer.gates.values())  # spares a walk through the model
        else:
            gates = [layer.sora_gate[name] for _, layer in self.layers(name)]
        return self._term.watch(config.sparse_lambda * torch.cat(gates).abs().mean())

    def _trained_adapter(self) -> str:
        names = self._active()
        if len(names) != 1:
            raise ValueError(
                f"SoRA trains one adapter at a time, and {names} are active; call "
                f"set_adapter(name) first"
            )
        return names[0]

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
        self._term = OwnTerm()

    def _prepared(self) -> GateOptimizer:
        if self.gate_optimizer is None:
            raise RuntimeError(
                "SoRA: call prepare_training(total_step) before training, or pass Lora2Callback() "
                "to the Trainer"
            )
        return self.gate_optimizer

    def before_optimizer_step(self, step: int) -> None:
        """Step the gates; afterwards their .grad is None, so that the main optimizer skips them.

        The gradient of the L1 term is added where no backward pass brought it.

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

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r gates are not zero."""
        name = self._trained_adapter()
        return {key: (layer.sora_gate[name] != 0).tolist() for key, layer in self.layers(name)}
