"""Drive the rank allocation of PEFT's own tuners, AdaLoRA's as its paper describes it.

The only place that works around PEFT. Each fault with its thread in huggingface/peft:
* nobody calls ``update_and_allocate``, so AdaLoRA silently is LoRA (#432, #1327, #1801), or it is
  called after the gradients are cleared (#1721): Lora2Callback calls the hooks below;
* the step ``total_step - tfinal`` is skipped and the final budget never set (PR #855): every step
  is passed in, and ``finish_training`` checks the budget;
* ``target_r == init_r`` makes the threshold's k-th value fail: then nothing is allocated;
* the orthogonality term is part of the evaluation loss, and of a pass with the adapter disabled: it
  is added only in training and with the adapter on;
* saving truncates the ranks (``rank_pattern``), so that a pruned run cannot be resumed: the
  pattern is kept here during training and given to PEFT at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from lora2.tuners.loss_term import OTHER_WEIGHTS


class AdaloraDriver:
    """The hooks of a tuner (see ``lora2.callbacks``) for a model with PEFT's AdaLoRA."""

    def __init__(self, model: PeftModel):
        tuner = model.base_model
        assert isinstance(tuner, AdaLoraModel)
        self.tuner = tuner
        self.config = tuner.peft_config[tuner.trainable_adapter_name]
        self.pattern: dict[str, list[bool]] | None = None
        self.steps = 0
        keep_regularizer_out_of_evaluation(tuner)

    @property
    def prunes(self) -> bool:
        return self.config.target_r < self.config.init_r

    def prepare_training(self, total_step: int) -> None:
        """Check that the run has the length the schedule was made for.

        Raises:
            ValueError: ``total_step`` (optimiser steps) is not the configuration's.
        """
        if self.prunes and total_step != self.config.total_step:
            raise ValueError(
                f"AdaLoRA was set up for {self.config.total_step} steps but the run has "
                f"{total_step}; set AdaLoraConfig(total_step={total_step})"
            )

    def after_optimizer_step(self, step: int) -> None:
        """Score and mask after optimiser step ``step`` (from 1), gradients still there."""
        self.steps += 1
        if not self.prunes:
            return
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(step)
        # Hidden from PEFT until the end: saving would truncate the ranks.
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def training_state(self) -> dict[str, Tensor]:
        """Return the smoothed scores and the rank pattern, with the weights they belong to."""
        allocator = self.tuner.rankallocator
        state = {"steps": torch.tensor(self.steps), "weights": self._singular_values()}
        for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            for name, value in getattr(allocator, kind).items():
                state[f"{kind}/{name}"] = value.detach().cpu().contiguous()
        for name, kept in (self.pattern or {}).items():
            state[f"pattern/{name}"] = torch.tensor(kept)
        return state

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``training_state`` returned.

        Raises:
            ValueError: it was not saved with the weights that are loaded.
        """
        loaded = self._singular_values()
        if not torch.equal(loaded, state.get("weights", loaded.new_empty(0)).to(loaded.device)):
            raise ValueError(f"AdaLoRA: {OTHER_WEIGHTS}")
        allocator, pattern = self.tuner.rankallocator, {}
        device = next(self.tuner.parameters()).device
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "pattern":
                pattern[name] = value.tolist()
            elif kind not in ("steps", "weights"):
                getattr(allocator, kind)[name] = value.to(device)
        self.steps = int(state["steps"])
        self.pattern = pattern or None

    def _singular_values(self) -> Tensor:
        return torch.cat([E.detach().flatten() for _, _, E in self._layers()])

    def _layers(self) -> Iterator[tuple[str, AdaLoraLayer, Tensor]]:
        """Yield name, module and singular values (init_r, 1) of each adapted layer."""
        adapter = self.tuner.trainable_adapter_name
        for name, module in self.tuner.model.named_modules():
            if isinstance(module, AdaLoraLayer) and adapter in module.lora_E:
                yield name, module, module.lora_E[adapter]

    def finish_training(self) -> None:
        """Give the final rank pattern to PEFT and check the budget.

        Raises:
            RuntimeError: the allocator never ran, or the ranks do not match the target.
        """
        if self.steps == 0:
            raise RuntimeError("AdaLoRA's allocator was never called: the run was plain LoRA")
        if not self.prunes:
            return
        kept = sum(sum(row) for row in (self.pattern or {}).values())
        target = self.config.target_r * len(self.pattern or {})
        if self.pattern is None or kept > target:
            raise RuntimeError(
                f"AdaLoRA kept {kept} triplets where its schedule allows {target}; "
                f"check tinit, tfinal and total_step"
            )
        self.config.rank_pattern = self.pattern

    def kept_parameters(self) -> int:
        """Return how many numbers survive: d_in + d_out + 1 for each triplet."""
        ranks = self.kept_ranks()
        return sum(
            sum(ranks[name]) * (layer.in_features + layer.out_features + 1)
            for name, layer, _ in self._layers()
        )

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Return module name -> which of its init_r triplets survive."""
        adapter, pattern = self.tuner.trainable_adapter_name, self.pattern or {}
        everything = [True] * self.config.init_r
        return {
            name: [bool(kept) for kept in pattern.get(f"{name}.lora_E.{adapter}", everything)]
            for name, _, _ in self._layers()
        }


class AllocationDriver:
    """Call ``update_and_allocate`` of any other PEFT tuner, such as AdaMSS, after each step.

    What such a tuner knows between steps cannot be saved: its runs write no checkpoints.
    """

    def __init__(self, tuner: BaseTuner):
        self.tuner = tuner

    def after_optimizer_step(self, step: int) -> None:
        """Score and allocate after optimiser step ``step`` (from 1), gradients still there."""
        self.tuner.update_and_allocate(step)


def keep_regularizer_out_of_evaluation(tuner: AdaLoraModel) -> None:
    """Make ``tuner`` add its term to the loss in training only, and where its adapter is on."""
    with_regularizer = tuner.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if tuner.training and _is_on(tuner):
            return with_regularizer(*args, **kwargs)
        return tuner.model.forward(*args, **kwargs)

    tuner.forward = forward  # type: ignore[method-assign]


def _is_on(tuner: AdaLoraModel) -> bool:
    """Whether a forward pass goes through the adapter."""
    layer = next(module for module in tuner.model.modules() if isinstance(module, AdaLoraLayer))
    return not (layer.disable_adapters or layer.merged)
