"""PEFT's AdaLoRA driven as its paper means it: the one place where PEFT is worked around.

What is worked around, each with the thread in huggingface/peft that tells of it:
* nobody calls ``update_and_allocate`` and AdaLoRA silently is LoRA (#432, #1327, #1801), or it is
  called after the gradients are cleared (#1721): the hooks below are driven by Lora2Callback;
* the step ``total_step - tfinal`` is skipped and the final budget never set (PR #855): every step
  is passed in, and ``finish_training`` checks the budget;
* ``target_r == init_r`` makes the threshold's k-th value fail: then nothing is allocated;
* the orthogonality term is part of the evaluation loss, and of a pass with the adapter disabled: it
  is added in training and where the adapter is on;
* saving truncates the ranks (``rank_pattern``) so that a pruned run cannot be resumed: the
  pattern is kept here while training and handed to PEFT at the end.
"""

from __future__ import annotations

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
        # Out of PEFT's sight until the end: saving would truncate the ranks.
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def training_state(self) -> dict[str, Tensor]:
        """Return the smoothed scores, the rank pattern and what tells whose they are, flat."""
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
            ValueError: it was not taken of the weights that are loaded.
        """
        own = self._singular_values()
        if not torch.equal(own, state.get("weights", own.new_empty(0)).to(own.device)):
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
        suffix = f".lora_E.{self.tuner.trainable_adapter_name}"
        named = self.tuner.model.named_parameters()
        return torch.cat([p.detach().flatten() for name, p in named if name.endswith(suffix)])

    def finish_training(self) -> None:
        """Hand the final rank pattern to PEFT and check the budget.

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
        layers = {name: self.tuner.model.get_submodule(name) for name in self.kept_ranks()}
        return sum(
            sum(kept) * (layers[name].in_features + layers[name].out_features + 1)
            for name, kept in self.kept_ranks().items()
        )

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Return module name -> which of its init_r triplets survive."""
        suffix = f".lora_E.{self.tuner.trainable_adapter_name}"
        names = [n for n, _ in self.tuner.model.named_parameters() if n.endswith(suffix)]
        everything = [True] * self.config.init_r
        pattern = self.pattern or {}
        return {
            name.split(".lora_E")[0]: [bool(kept) for kept in pattern.get(name, everything)]
            for name in names
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
