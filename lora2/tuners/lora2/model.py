"""LoRA2 on a model: adapters in place of its linear layers, the regulariser, the allocator."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.regularizer import stacked_penalty
from lora2.tuners.lora2.stacks import Adapted
from lora2.tuners.lora2.training import RankTraining
from lora2.tuners.loss_term import LossTerm, TermModel, add_gradient


class Lora2Model(TermModel):
    """What ``get_peft_model(model, Lora2Config(...)).base_model`` is.

    While the model is in training mode, its loss contains ``regularization_loss()``. A transformers
    Trainer drives the allocator with ``Lora2Callback``; a plain loop calls
    ``peft_model.base_model.update_and_allocate(step)`` between ``optimizer.step()`` and
    ``optimizer.zero_grad()``, counting optimiser steps from 1.

    Several adapters may be loaded; the active one is trained, one at a time.
    """

    prefix = "lora2_"
    tuner_layer_cls = Lora2Linear

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = RankTraining()

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's; afterwards the state of its training is dropped."""
        super().delete_adapter(adapter_name)
        self._ranks.forget(adapter_name)

    def _look_up_layers(self) -> None:
        super()._look_up_layers()
        self._adapters = {name: Adapted(name, layers) for name, layers in self._layers.items()}

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

    _loss_term = regularization_loss

    def _penalty(self, adapted: Adapted, config: Lora2Config) -> Tensor:
        pairs, squared = config.orthogonality, config.orth_squared
        penalty = stacked_penalty(adapted.stacks(), pairs=pairs, squared=squared)
        return config.orth_reg_weight * penalty

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Have the active adapters' parameters stacked once for all layers."""
        super()._before_forward(module, args)
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if module is self.model and not tracing:  # a trace is checked node by node
            for name in self._active():
                if name in self._adapters:
                    self._adapters[name].cache_pairs(self._is_on(name))

    def _after_forward(self, *args: Any) -> None:
        super()._after_forward(*args)
        for adapted in self._adapters.values():
            adapted.clear_pairs()

    def _watch(self, adapter: str, saving: bool) -> None:
        self._ranks.watch(self._adapters[adapter], self.peft_config[adapter], saving)

    def prepare_training(self, total_step: int | None = None) -> None:
        """Start a training of ``total_step`` optimiser steps (None: as the config says).

        Raises:
            ValueError: no adapter or several are trained, ``total_step`` is unknown or contradicts
                the config, the pruning schedule does not fit into it, or ZeRO-3 holds the weights.
        """
        adapter, config = self._trained()
        if any(hasattr(p, "ds_id") for p in self.model.parameters() if p.requires_grad):
            raise ValueError(
                "DeepSpeed ZeRO-3 leaves only empty parameters outside of a layer's own forward "
                "pass, so that neither the regulariser nor the allocator can read them: use FSDP2 "
                "(fully_shard), DDP, or ZeRO-2 without target_r"
            )
        self._ranks.prepare(self._adapters[adapter], config, total_step)
        self._term = LossTerm()

    def before_optimizer_step(self, step: int) -> None:
        """Add the penalty's gradient to optimiser step ``step``, if no backward pass reached it.

        For gradients in their own scale (GradScaler.unscale_) and after any clipping.
        """
        adapter, config = self._trained()
        if config.regularizes and self._is_on(adapter) and self._term.missing():
            adapted = self._adapters[adapter]
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

    def kept_parameters(self) -> int:
        """Return how many numbers of the active adapter survive.

        k (d_in + d_out) + n (2 k + 1) for a matrix with n singular values left, none for n = 0.
        """
        adapter, total = self._active()[0], 0
        for layer in self.adapted_layers(adapter).values():
            k, n = layer.k[adapter], int(layer.lora2_mask[adapter].sum())
            total += k * (layer.in_features + layer.out_features) + n * (2 * k + 1) if n else 0
        return total

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Module name -> which of its r singular values survive, for the active adapter."""
        adapter = self._active()[0]
        return {
            n: layer.lora2_mask[adapter].tolist()
            for n, layer in self.adapted_layers(adapter).items()
        }
