"""LoRA2 on a model: adapters in place of its linear layers, the regulariser, the allocator."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.stacks import Adapted, stacked_penalty, whole
from lora2.tuners.loss_term import OTHER_WEIGHTS, LossTerm, TermModel, add_gradient

_CALL = (
    "train with callbacks=[Lora2Callback()], or call "
    "peft_model.base_model.update_and_allocate(step) after each optimizer.step()"
)
_NO_LOSS = (
    "the orthogonality regulariser was part of no loss: train with callbacks=[Lora2Callback()], or "
    "with the loss that the model returns, or add peft_model.base_model.regularization_loss() to "
    "your own, or call before_optimizer_step(step), or set orth_reg_weight=0"
)


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
    allocator: Allocator | None = None  # of the training under way; None where nothing is pruned
    _in_training = ""  # the adapter whose training was prepared
    _total_step: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._protection: dict[str, list[Any]] = {}  # adapter -> hooks on its pruned values
        self._final: set[str] = set()  # adapters whose ranks are final
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out hooks: a copy's parameters have none, and get theirs when it is trained."""
        return {**vars(self), "_protection": {}, "_final": set()}

    def _look_up_layers(self) -> None:
        super()._look_up_layers()
        for adapter in self._protection.keys() - self._layers:
            self._release(adapter)
        if self._in_training and self._in_training not in self._layers:  # deleted
            self._forget()
        self._adapters = {name: Adapted(name, layers) for name, layers in self._layers.items()}

    def regularization_loss(self) -> Tensor:
        """orth_reg_weight times the mean of the selected terms of Eq. 5, a scalar.

        For a loss computed outside the model; a loss that the model returns contains it already,
        and with Lora2Callback it acts whatever the loss is.
        """
        adapted, config = self._training()
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
        self._after_forward()  # an interrupt of the last forward runs no hook
        super()._before_forward(module, args)
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if module is self.model and not tracing:  # a trace is checked node by node
            for name in self._active():
                if name in self._adapters:
                    self._adapters[name].cache_pairs(self._is_on(name))

    def _after_forward(self, *_: Any) -> None:
        for adapted in self._adapters.values():
            adapted.clear_pairs()

    def prepare_training(self, total_step: int | None = None) -> None:
        """Start a training of ``total_step`` optimiser steps (None: as the config says).

        Raises:
            ValueError: ``total_step`` is unknown, contradicts the config or is too short to prune,
                not exactly one adapter is trained, or ZeRO-3 holds the weights.
        """
        if any(hasattr(p, "ds_id") for p in self.model.parameters() if p.requires_grad):
            raise ValueError(
                "DeepSpeed ZeRO-3 leaves only empty parameters outside of a layer's own forward "
                "pass, so that neither the regulariser nor the allocator can read them: use FSDP2 "
                "(fully_shard), DDP, or ZeRO-2 without target_r"
            )
        adapted, config = self._training()
        self._prepare(adapted, config, total_step)
        self._term = LossTerm(adapted.factors().lam[0].device)

    def before_optimizer_step(self, step: int) -> None:
        """Add the penalty's gradient to optimiser step ``step``, if no backward pass reached it.

        For gradients in their own scale (GradScaler.unscale_) and after any clipping.
        """
        adapted, config = self._training()
        if not (config.regularizes and self._is_on(adapted.adapter)):
            return
        if (missing := self._term.missing()) is not False:
            trained = [p for part in adapted.factors() for p in part if p.requires_grad]
            with torch.enable_grad():
                penalty = missing * self._penalty(adapted, config)
            add_gradient(penalty, trained)

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> None:
        """Score, allocate and mask after optimiser step ``step`` = 1, 2, ...

        Raises:
            RuntimeError: the gradients of this step are gone, or another adapter was active before.
            ValueError: ``step`` does not follow the last one, or see ``prepare_training``.
        """
        adapted, config = self._training()
        if config.regularizes and not self._term.acted:
            self._term.acted = True
            warnings.warn(_NO_LOSS, stacklevel=2)
        if not config.prunes:
            return
        factors, masks = adapted.factors(), adapted.masks()
        if (allocator := self._allocator_of(adapted, config)) is not None:
            allocator.step(step, factors, masks)
            if step == allocator.total_step:
                self._keep(adapted, final=True)
        else:  # an optimiser from before may still move what was pruned
            for lam, mask in zip(factors.lam, masks, strict=True):
                lam.mul_(mask)

    update_and_allocate = after_optimizer_step  # as PEFT's AdaLoRA calls it

    def training_state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond the weights; empty when no pruning is under way."""
        if self.allocator is None:
            return {}
        lambdas = _lambdas(self._adapters[self._in_training])  # to check that both fit together
        return {**self.allocator.state_dict(), "lambda": lambdas}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Continue after the step of ``training_state``; a ValueError if it is of another run."""
        adapted, config = self._training()
        if not config.prunes:
            if state:
                raise ValueError(
                    "this state holds an allocator, but the adapter does not prune: resume with "
                    "the target_r of the first run"
                )
            return
        lambdas = _lambdas(adapted)
        saved = state.get("lambda", lambdas.new_empty(0)).to(lambdas.device)
        differs = not torch.equal(lambdas, saved)
        allocator = self._allocator_of(adapted, config)
        if allocator is None:
            if not differs and state["step"] == state["total_step"]:
                return  # of a training that is over: its ranks stay
            allocator = self._start(adapted, config)
        allocator.load_state_dict({key: value for key, value in state.items() if key != "lambda"})
        if differs:
            raise ValueError(f"LoRA2: {OTHER_WEIGHTS}")
        torch._foreach_copy_(adapted.masks(), list(allocator.mask.unbind()))

    def finish_training(self) -> None:
        """Raise a RuntimeError unless the allocator saw every step and pruned to its target."""
        adapted, config = self._training()
        if not config.prunes or self._is_over(adapted.adapter):
            return
        if self.allocator is None or self.allocator.last_step == 0:
            raise RuntimeError(
                f"target_r={config.target_r} is set, but the allocator was never called, so "
                f"every rank is still {config.r}: {_CALL}"
            )
        self._check_in_training(adapted)
        self.allocator.check_finished(adapted.factors(), adapted.masks())

    def _training(self) -> tuple[Adapted, Lora2Config]:
        name, config = self._trained()
        return self._adapters[name], config

    def _prepare(self, adapted: Adapted, config: Lora2Config, total_step: int | None) -> None:
        self._forget()
        self._in_training = adapted.adapter
        self._total_step = config.total_step if total_step is None else total_step
        if config.prunes and _kept(adapted) == config.target_r:
            self._keep(adapted, final=True)
            return
        if total_step is not None and config.total_step not in (None, total_step):
            raise ValueError(
                f"Lora2Config has total_step={config.total_step}, but this training has "
                f"{total_step} optimiser steps: drop total_step from the config or make them agree"
            )
        if config.prunes:
            self._start(adapted, config)

    def _start(self, adapted: Adapted, config: Lora2Config) -> Allocator:
        if self._total_step is None:
            raise ValueError(
                f"target_r={config.target_r} prunes along a schedule, which needs the number of "
                f"optimiser steps: set Lora2Config(total_step=...), or train with a transformers "
                f"Trainer and callbacks=[Lora2Callback()], which knows it"
            )
        self._release(adapted.adapter)
        self.allocator = Allocator(config, adapted.factors(), self._total_step)
        for mask in adapted.masks():
            mask.fill_(True)
        return self.allocator

    def _allocator_of(self, adapted: Adapted, config: Lora2Config) -> Allocator | None:
        """Return the allocator, of a training that is prepared here if need be, or None (final)."""
        if self._is_over(adapted.adapter):
            return None
        if self.allocator is None:
            self._prepare(adapted, config, None)
        self._check_in_training(adapted)
        return self.allocator

    def _check_in_training(self, adapted: Adapted) -> None:
        if adapted.adapter != self._in_training:
            raise RuntimeError(
                f"adapter {adapted.adapter!r} is active, but the ranks of {self._in_training!r} "
                f"are being allocated: call prepare_training(total_step) to start on "
                f"{adapted.adapter!r}"
            )

    def _watch(self, adapter: str, saving: bool) -> None:
        """Keep what is pruned; warn once if no one calls the allocator or reads the regulariser."""
        adapted, config = self._adapters[adapter], self.peft_config[adapter]
        if config.regularizes and not (config.prunes or self._term.acted):
            self._warn_undriven(adapted.factors().lam[0], saving, _NO_LOSS)
        mine = self.allocator if self._in_training == adapter else None
        done = mine.last_step / mine.total_step if mine else 1.0
        if not config.prunes or adapter in self._final or 0 < done < 1:
            return
        lam = adapted.factors().lam[0]
        if done and not saving and adapter not in self._protection:  # looked at once
            self._protection[adapter] = []
            if (kept := _kept(adapted)) < config.r:
                self._keep(adapted, final=kept == config.target_r)
            if adapter in self._final:
                return
        if saving and config.init_weights and not math.isnan(_kept(adapted)):
            lambdas = _lambdas(adapted)
            mask = torch.cat([mask.to(lambdas.device) for mask in adapted.masks()])
            if (lambdas if mask.all() else lambdas[~mask]).any():  # not zero, as they started
                self._versions += [-1]  # trained, though compiled passes are not watched
        text = f"the allocator is not called, so target_r={config.target_r} cuts no rank: {_CALL}"
        self._warn_undriven(lam, saving, text)

    def _keep(self, adapted: Adapted, final: bool) -> None:
        """Let no gradient reach a pruned singular value, until ``_release``."""
        name = adapted.adapter
        self._release(name)
        self._protection[name] = [
            lam.register_hook(lambda grad, layer=layer: grad * layer.lora2_mask[name])
            for layer in adapted.layers.values()
            if (lam := layer.lora2_lambda[name]).requires_grad
        ]
        if final:
            self._final.add(name)

    def _release(self, adapter: str) -> None:
        self._final.discard(adapter)
        for hook in self._protection.pop(adapter, ()):
            hook.remove()

    def _is_over(self, adapter: str) -> bool:
        """Whether the adapter's ranks are final, and not by the allocator that is here."""
        mine = self.allocator is not None and self._in_training == adapter
        return adapter in self._final and not mine

    def _forget(self) -> None:
        self.allocator, self._in_training = None, ""
        self._versions, self._warned = [], False


def _lambdas(adapted: Adapted) -> Tensor:
    lambdas = [whole(lam) for lam in adapted.factors().lam]
    return torch.cat([lam.detach().to(lambdas[0].device) for lam in lambdas])


def _kept(adapted: Adapted) -> float:
    """Return the mean rank that the masks leave, nan if they are elsewhere; one number moves."""
    masks = adapted.masks()
    if not masks or any(mask.is_meta for mask in masks):
        return math.nan
    kept = torch.stack([mask.to(masks[0].device) for mask in masks]).sum()
    return int(kept) / len(masks)
