"""The training of one adapter's ranks, from its first optimiser step to its last."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.stacks import Adapted, whole
from lora2.tuners.loss_term import OTHER_WEIGHTS, UndrivenCheck


class RankTraining:
    """The allocator, and which adapter's ranks it allocates; no allocator where none is pruned."""

    def __init__(self) -> None:
        self.allocator: Allocator | None = None
        self._adapter = ""
        self._total_step: int | None = None
        self._kept: list[Any] = []  # hooks that keep the ranks of an adapter that is final
        self._undriven = UndrivenCheck()

    def prepare(self, adapted: Adapted, config: Lora2Config, total_step: int | None) -> None:
        """Start again; see ``Lora2Model.prepare_training``."""
        self.forget(self._adapter)
        self._adapter = adapted.adapter
        self._total_step = config.total_step if total_step is None else total_step
        if _is_final(adapted, config):
            self._keep(adapted)
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
        self._release()
        self.allocator = Allocator(config, adapted.factors(), self._total_step)
        for mask in adapted.masks():
            mask.fill_(True)
        return self.allocator

    def step(self, step: int, adapted: Adapted, config: Lora2Config) -> None:
        """Score, allocate and mask after optimiser step ``step``."""
        if not config.prunes:
            return
        if (allocator := self._allocator_of(adapted, config)) is not None:
            allocator.step(step, adapted.factors(), adapted.masks())
        else:  # an optimiser from before may still move what was pruned
            with torch.no_grad():
                for lam, mask in zip(adapted.factors().lam, adapted.masks(), strict=True):
                    lam.mul_(mask)

    def watch(self, adapted: Adapted, config: Lora2Config, saving: bool) -> None:
        """When a pass begins: keep final ranks, and warn once if the allocator is not called."""
        if not config.prunes or self._kept or (self.allocator and self.allocator.last_step):
            return
        first = next(iter(adapted.layers.values()))
        version = first.lora2_lambda[adapted.adapter]._version
        new = not (saving or self._undriven.versions or self.allocator)
        if new and _is_final(adapted, config):
            self._adapter = adapted.adapter
            self._keep(adapted)
        elif self._undriven.should_warn(version, saving):
            warnings.warn(
                f"target_r={config.target_r} is set, but the allocator is not called, so every "
                f"rank is still {config.r}: train with callbacks=[Lora2Callback()], or call "
                f"peft_model.base_model.update_and_allocate(step) after each optimizer.step()",
                stacklevel=2,
            )

    def state(self, adapters: dict[str, Adapted]) -> dict[str, Tensor]:
        """Return what a resumed training needs beyond the weights; empty when nothing is pruned.

        With the singular values, to check that both belong together.
        """
        if self.allocator is None:
            return {}
        return {**self.allocator.state_dict(), "lambda": _lambdas(adapters[self._adapter])}

    def load(self, state: dict[str, Tensor], adapted: Adapted, config: Lora2Config) -> None:
        """Continue after the step at which ``state`` was taken."""
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

    def finish(self, adapted: Adapted, config: Lora2Config) -> None:
        """Check that the ranks are what the schedule promised."""
        if not config.prunes or self._kept:
            return
        if self.allocator is None or self.allocator.last_step == 0:
            raise RuntimeError(
                f"target_r={config.target_r} is set, but the allocator was never called, so "
                f"every rank is still {config.r}: train with callbacks=[Lora2Callback()], or call "
                f"peft_model.base_model.update_and_allocate(step) after each optimizer.step()"
            )
        allocator = self._allocator_of(adapted, config)
        assert allocator is not None
        allocator.check_finished(adapted.factors(), adapted.masks())

    def forget(self, adapter: str) -> None:
        """Drop the state of ``adapter``, which is deleted or starts again."""
        if adapter == self._adapter:
            self.allocator, self._adapter, self._undriven = None, "", UndrivenCheck()
            self._release()

    def _keep(self, adapted: Adapted) -> None:
        """Let no gradient reach a pruned singular value."""

        def masked(layer: Lora2Linear, gradient: Tensor) -> Tensor:
            return gradient * layer.lora2_mask[adapted.adapter]

        for layer in adapted.layers.values():
            if (lam := layer.lora2_lambda[adapted.adapter]).requires_grad:
                self._kept.append(lam.register_hook(partial(masked, layer)))

    def _release(self) -> None:
        while self._kept:
            self._kept.pop().remove()

    def _allocator_of(self, adapted: Adapted, config: Lora2Config) -> Allocator | None:
        """The allocator of a training that is prepared here if need be; None if ranks are final."""
        if self.allocator is None and not self._kept:
            self.prepare(adapted, config, None)
        if adapted.adapter != self._adapter:
            raise RuntimeError(
                f"adapter {adapted.adapter!r} is active, but the ranks of {self._adapter!r} are "
                f"being allocated: call prepare_training(total_step) to start on "
                f"{adapted.adapter!r}"
            )
        return self.allocator


def _lambdas(adapted: Adapted) -> Tensor:
    """All singular values, flat, on one device."""
    lambdas = [whole(lam) for lam in adapted.factors().lam]
    return torch.cat([lam.detach().to(lambdas[0].device) for lam in lambdas])


def _is_final(adapted: Adapted, config: Lora2Config) -> bool:
    """Whether the ranks are those at the end of a training; moves one number to the host."""
    masks = adapted.masks()
    if not config.prunes or not masks or any(mask.is_meta for mask in masks):
        return False
    kept = torch.stack([mask.to(masks[0].device) for mask in masks]).sum()
    return int(kept) == len(masks) * (config.target_r or config.r)
