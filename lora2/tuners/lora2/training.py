"""The training of one adapter's ranks, from its first optimiser step to its last."""

from __future__ import annotations

import torch
from torch import Tensor

from lora2.tuners.lora2.adapted import Adapted
from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.config import Lora2Config


class RankTraining:
    """The allocator, and which adapter's ranks it allocates; no allocator where none is pruned."""

    def __init__(self) -> None:
        self.allocator: Allocator | None = None
        self._adapter = ""

    def prepare(self, adapted: Adapted, config: Lora2Config, total_step: int | None) -> None:
        """Start anew; see ``Lora2Model.prepare_training``."""
        self.allocator, self._adapter = None, adapted.adapter
        if total_step is not None and config.total_step not in (None, total_step):
            raise ValueError(
                f"Lora2Config has total_step={config.total_step}, but this training has "
                f"{total_step} optimiser steps: drop total_step from the config or make them agree"
            )
        if not config.prunes:
            return
        total_step = config.total_step if total_step is None else total_step
        if total_step is None:
            raise ValueError(
                f"target_r={config.target_r} prunes along a schedule, which needs the number of "
                f"optimiser steps: set Lora2Config(total_step=...), or train with a transformers "
                f"Trainer and callbacks=[Lora2Callback()], which knows it"
            )
        self.allocator = Allocator(config, adapted.factors(), total_step)
        for mask in adapted.masks():
            mask.fill_(True)

    def step(self, step: int, adapted: Adapted, config: Lora2Config) -> None:
        """Score, allocate and mask after optimiser step ``step``."""
        if config.prunes:
            self._allocator_of(adapted, config).step(step, adapted.factors(), adapted.masks())

    def state(self) -> dict[str, Tensor]:
        """What a resumed training needs beyond the weights; empty when nothing is pruned."""
        return self.allocator.state_dict() if self.allocator is not None else {}

    def load(self, state: dict[str, Tensor], adapted: Adapted, config: Lora2Config) -> None:
        """Continue after the step at which ``state`` was taken."""
        if not config.prunes:
            if state:
                raise ValueError(
                    "this state holds an allocator, but the adapter does not prune: resume with "
                    "the target_r of the first run"
                )
            return
        allocator = self._allocator_of(adapted, config)
        allocator.load_state_dict(state)
        torch._foreach_copy_(adapted.masks(), list(allocator.mask.unbind()))

    def finish(self, adapted: Adapted, config: Lora2Config) -> None:
        """Check that the ranks are what the schedule promised."""
        if not config.prunes:
            return
        if self.allocator is None or self.allocator.last_step == 0:
            raise RuntimeError(
                f"target_r={config.target_r} was asked for, but the allocator was never called, so "
                f"every rank is still {config.r}: train with callbacks=[Lora2Callback()], or call "
                f"peft_model.base_model.update_and_allocate(step) after each optimizer.step()"
            )
        allocator = self._allocator_of(adapted, config)
        allocator.check_finished(adapted.factors(), adapted.masks())

    def forget(self, adapter: str) -> None:
        """Drop the allocator if it is ``adapter``'s, which is gone."""
        if adapter == self._adapter:
            self.allocator, self._adapter = None, ""

    def _allocator_of(self, adapted: Adapted, config: Lora2Config) -> Allocator:
        if self.allocator is None:
            self.prepare(adapted, config, None)
        assert self.allocator is not None
        if adapted.adapter != self._adapter:
            raise RuntimeError(
                f"adapter {adapted.adapter!r} is active, but the ranks of {self._adapter!r} are "
                f"being allocated: call prepare_training(total_step) to start on "
                f"{adapted.adapter!r}"
            )
        return self.allocator
