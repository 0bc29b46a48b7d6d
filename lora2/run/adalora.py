"""Drive the rank allocation of PEFT's own tuners, AdaLoRA's as its paper describes it.

The only place that works around PEFT. Each fault with its thread in huggingface/peft:
* nobody calls ``update_and_allocate``, so AdaLoRA silently is LoRA (#432, #1327, #1801), or it is
  called after the gradients are cleared (#1721): Lora2Callback calls the hooks below;
* the step ``total_step - tfinal`` is skipped and the final budget never set (PR #855): every step
  is passed in, and ``finish_training`` checks the budget;
* ``target_r == init_r`` makes the threshold's k-th value fail: then nothing is allocated;
* the orthogonality term is part of the evaluation loss: it is added only in training;
* saving truncates the ranks (``rank_pattern``), so that a pruned run cannot be resumed: the
  pattern is kept here during training and given to PEFT at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from lora2.tuners.loss_term import OTHER_WEIGHTS

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's allocator, by parameter


class AdaloraDriver:
    """The hooks of a tuner (see ``lora2.callbacks``) for a model with PEFT's AdaLoRA."""

    def __init__(self, model: PeftModel):
        tuner = model.base_model
        assert isinstance(tuner, AdaLoraModel)
        self.tuner, self.adapter = tuner, tuner.trainable_adapter_name
        self.config = tuner.peft_config[self.adapter]
        self.prunes = self.config.target_r < self.config.init_r
        self.pattern: dict[str, list[bool]] | None = None
        self.layers: dict[str, AdaLoraLayer] = {
            name: module
            for name, module in tuner.model.named_modules()
            if isinstance(module, AdaLoraLayer) and self.adapter in module.lora_E
        }
        with_term = tuner.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (with_term if tuner.training else tuner.model.forward)(*args, **kwargs)

        tuner.forward = forward  # type: ignore[method-assign]

    def after_optimizer_step(self, step: int) -> None:
        """Score and mask after optimiser step ``step`` (from 1), gradients still there."""
        if self.prunes:
            self.config.rank_pattern = self.pattern
            self.tuner.update_and_allocate(step)
            # Hidden from PEFT until the end: saving would truncate the ranks.
            self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def training_state(self) -> dict[str, Tensor]:
        """Return the smoothed scores and the rank pattern, with the weights they belong to."""
        state = {"weights": self._singular_values()}
        for kind in AVERAGES:
            for name, value in getattr(self.tuner.rankallocator, kind).items():
                state[f"{kind}/{name}"] = value.detach().cpu().contiguous()
        for name, kept in (self.pattern or {}).items():
            state[f"pattern/{name}"] = torch.tensor(kept)
        return state

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``training_state`` returned; ValueError if it belongs to other weights."""
        loaded = self._singular_values()
        if not torch.equal(loaded, state.get("weights", loaded.new_empty(0)).to(loaded.device)):
            raise ValueError(f"AdaLoRA: {OTHER_WEIGHTS}")
        pattern = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "pattern":
                pattern[name] = value.tolist()
            elif kind in AVERAGES:
                getattr(self.tuner.rankallocator, kind)[name] = value.to(loaded.device)
        self.pattern = pattern or None

    def _singular_values(self) -> Tensor:
        values = [layer.lora_E[self.adapter] for layer in self.layers.values()]  # (init_r, 1) each
        return torch.cat([E.detach().flatten() for E in values])

    def finish_training(self) -> None:
        """Give PEFT the final rank pattern; RuntimeError if more ranks than allowed are left."""
        kept = sum(sum(row) for row in self.kept_ranks().values())
        target = self.config.target_r * len(self.layers)
        if self.prunes and kept > target:
            raise RuntimeError(
                f"AdaLoRA kept {kept} triplets where its schedule allows {target}; "
                f"check tinit, tfinal and total_step"
            )
        self.config.rank_pattern = self.pattern

    def kept_parameters(self) -> int:
        """Return how many numbers survive: d_in + d_out + 1 for each triplet."""
        sizes = {n: layer.in_features + layer.out_features + 1 for n, layer in self.layers.items()}
        return sum(sum(kept) * sizes[name] for name, kept in self.kept_ranks().items())

    def kept_ranks(self) -> dict[str, list[bool]]:
        """Return module name -> which of its init_r triplets survive."""
        pattern, everything = self.pattern or {}, [True] * self.config.init_r
        return {
            name: [bool(kept) for kept in pattern.get(f"{name}.lora_E.{self.adapter}", everything)]
            for name in self.layers
        }


class AllocationDriver:
    """Call ``update_and_allocate`` of any other PEFT tuner, such as AdaMSS, after each step.

    The state of such a tuner cannot be saved, so its runs write no checkpoints.
    """

    def __init__(self, tuner: BaseTuner):
        self.tuner = tuner

    def after_optimizer_step(self, step: int) -> None:
        """Score and allocate after optimiser step ``step`` (from 1), gradients still there."""
        self.tuner.update_and_allocate(step)
