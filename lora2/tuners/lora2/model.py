"""LoRA2 on a model: adapters in place of its linear layers, the regulariser, the allocator."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.lora2.adapted import Adapted
from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.regularizer import stacked_penalty
from lora2.tuners.lora2.training import RankTraining
from lora2.tuners.mixed_batch import refuse_mixed_batch
from lora2.tuners.replace import base_linear, replace_module
from lora2.tuners.term import (
    OwnTerm,
    add_gradient,
    add_to_loss,
    hook_forward,
    unhook_forward,
)


class Lora2Model(BaseTuner):
    """What ``get_peft_model(model, Lora2Config(...)).base_model`` is.

    While the model is in training mode, its loss contains ``regularization_loss()``. A transformers
    Trainer drives the allocator with ``Lora2Callback``; a plain loop calls
    ``peft_model.base_model.update_and_allocate(step)`` between ``optimizer.step()`` and
    ``optimizer.zero_grad()``, counting optimiser steps from 1.

    Several adapters may be loaded; the active one is trained, one at a time.
    """

    prefix = "lora2_"
    tuner_layer_cls = Lora2Linear
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _enable_peft_forward_hooks = refuse_mixed_batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = RankTraining()
        self._term = OwnTerm()
        self._hook_forward()

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; afterwards the adapted layers are looked up anew."""
        super().inject_adapter(*args, **kwargs)
        self._look_up_layers()

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's; afterwards the adapted layers are looked up anew, and its ranks forgotten."""
        super().delete_adapter(adapter_name)
        self._ranks.forget(adapter_name)
        self._look_up_layers()

    def _look_up_layers(self) -> None:
        """Find each adapter's layers by module name."""
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, Lora2Linear)}
        self._adapters = {
            adapter: Adapted(adapter, {n: m for n, m in layers.items() if adapter in m.lora2_u})
            for adapter in self.peft_config
        }

    def _create_and_replace(
        self,
        config: Lora2Config,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, Lora2Linear):
            target.update_layer(adapter_name, config)
            return
        transposed = isinstance(base_linear(target, current_key), Conv1D)
        if config.fan_in_fan_out != transposed:
            warnings.warn(
                f"fan_in_fan_out={config.fan_in_fan_out} does not suit {current_key}: set to "
                f"{transposed}",
                stacklevel=2,
            )
            config.fan_in_fan_out = transposed
        layer = Lora2Linear(target, adapter_name, config)
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

    def regularization_loss(self) -> Tensor:
        """orth_reg_weight times the mean of the selected terms of Eq. 5, a scalar.

        For a loss computed outside the model; a loss that the model returns contains it already,
        and with Lora2Callback it acts whatever the loss is.
        """
        adapter, config = self._trained()
        adapted = self._adapters[adapter]
        if not config.regularizes:
            return adapted.factors().lam[0].new_zeros(())
        return self._term.watch(self._penalty(adapted, config))

    def _penalty(self, adapted: Adapted, config: Lora2Config) -> Tensor:
        pairs, squared = config.orthogonality, config.orth_squared
        return config.orth_reg_weight * stacked_penalty(
            adapted.stacks(), pairs=pairs, squared=squared
        )

    def _hook_forward(self) -> None:
        """Have the wrapped model's own forward stack the factors and add the penalty.

        A PeftModel without a task type calls that forward directly, past this class's.
        """
        handles = [
            self.model.register_forward_pre_hook(self._before_forward),
            self.model.register_forward_hook(self._add_penalty, with_kwargs=True),
            # Also after a forward that raised, or its stacks would serve as the next loss's.
            self.model.register_forward_hook(self._after_forward, always_call=True),
            self.model.register_state_dict_pre_hook(partial(self._watch_training, saving=True)),
        ]
        hook_forward(self.model, self, handles)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Have the active adapters' parameters stacked once for all layers."""
        self._after_forward()  # an interrupt of the last one runs no hook
        if module is self.model:
            for name in self._active():
                if name in self._adapters:
                    self._adapters[name].hand_out()
            if module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self._watch_training()

    def _watch_training(self, *_: Any, saving: bool = False) -> None:
        """See a training pass or a saving begin."""
        for name in self._trainable():
            adapted, config = self._adapters[name], cast(Lora2Config, self.peft_config[name])
            if adapted.is_on():
                self._ranks.watch(adapted, config, saving=saving)
                if not saving:
                    self._term.begin(adapted.layers.values())

    def _after_forward(self, *_: Any) -> None:
        self._term.end()
        for adapted in self._adapters.values():
            adapted.take_back()

    def _add_penalty(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not (module.training and self._is_training()) or self._term.recomputed:
            return output
        return add_to_loss(module, kwargs, output, self.regularization_loss)

    def prepare_training(self, total_step: int | None = None) -> None:
        """Start a training of ``total_step`` optimiser steps (None: as the config says).

        Raises:
            ValueError: no adapter or several are trained, ``total_step`` is unknown or contradicts
                the config, or the pruning schedule does not fit into it.
        """
        adapter, config = self._trained()
        self._ranks.prepare(self._adapters[adapter], config, total_step)
        self._term = OwnTerm()

    def before_optimizer_step(self, step: int) -> None:
        """Give the penalty's gradient to optimiser step ``step``, if no backward pass brought it.

        For gradients in their own scale (GradScaler.unscale_) and after any clipping.
        """
        adapter, config = self._trained()
        adapted = self._adapters[adapter]
        if config.regularizes and adapted.is_on() and self._term.missing():
            trained = [p for part in adapted.factors() for p in part if p.requires_grad]
            with torch.enable_grad():
                penalty = self._penalty(adapted, config)
            add_gradient(penalty, trained)

    def after_optimizer_step(self, step: int) -> None:
        """Score, allocate and mask after optimiser step ``step`` = 1, 2, ...

        Raises:
            RuntimeError: the gradients of this step are gone, or another adapter was active before.
            ValueError: ``step`` does not follow the last one, or see ``prepare_training``.
        """
        adapter, config = self._trained()
        if config.regularizes and not self._term.acted:
            self._term.acted = True
            warnings.warn(
                "the orthogonality regulariser was part of no loss: train with the loss that the "
                "model returns, or add peft_model.base_model.regularization_loss() to your own, or "
                "call before_optimizer_step(step), or set orth_reg_weight=0",
                stacklevel=2,
            )
        self._ranks.step(step, self._adapters[adapter], config)

    def update_and_allocate(self, step: int) -> None:
        """``after_optimizer_step`` under the name that PEFT's AdaLoRA gave it."""
        self.after_optimizer_step(step)

    def training_state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond the adapter's weights; empty when nothing is pruned."""
        return self._ranks.state(self._adapters)

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue after the step at which ``training_state`` was taken.

        Raises:
            RuntimeError: another adapter is being trained.
            ValueError: ``state`` is of another run (shapes, steps, singular values), or see
                ``prepare_training``.
        """
        adapter, config = self._trained()
        self._ranks.load(state, self._adapters[adapter], config)

    def finish_training(self) -> None:
        """Check that the ranks are what the schedule promised.

        Raises:
            RuntimeError: the allocator was never called, or not to the last step, or for another
                adapter, or it saw no gradient, or another number of singular values survives.
        """
        adapter, config = self._trained()
        self._ranks.finish(self._adapters[adapter], config)

    @property
    def allocator(self) -> Allocator | None:
        """The allocator of the training under way."""
        return self._ranks.allocator

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r singular values survive, for the active adapter."""
        adapter = self._active()[0]
        return {
            name: layer.lora2_mask[adapter].tolist()
            for name, layer in self._adapted(adapter).items()
        }

    def _active(self) -> list[str]:
        """The active adapters. transformers' own set_adapter tells nobody but the layers."""
        layers = (layer for one in self._adapters.values() for layer in one.layers.values())
        first = next(layers, None)
        return self.active_adapters if first is None else first.active_adapters

    def _trainable(self) -> list[str]:
        return [
            name
            for name in self._active()
            if name in self.peft_config and not self.peft_config[name].inference_mode
        ]

    def _trained(self) -> tuple[str, Lora2Config]:
        """Name and settings of the one adapter that is trained."""
        names = self._trainable()
        if len(names) != 1:
            raise ValueError(
                f"LoRA2 trains one adapter at a time, but the active adapters in training mode are "
                f"{names}: choose one with set_adapter(name) (one loaded by from_pretrained needs "
                f"is_trainable=True)"
            )
        return names[0], cast(Lora2Config, self.peft_config[names[0]])

    def _is_training(self) -> bool:
        """Whether a forward now goes through an adapter that is trained."""
        return any(self._adapters[name].is_on() for name in self._trainable())

    def _adapted(self, adapter: str) -> dict[str, Lora2Linear]:
        """Module name -> its layer, for every module that ``adapter`` adapts."""
        return self._adapters[adapter].layers
