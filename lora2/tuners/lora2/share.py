"""How much of an optimiser step's loss one forward pass contributes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss


def share_of_step(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """Return this pass's part of the step's labels, a scalar; None where it is not told the whole.

    A transformers Trainer tells a model that takes loss arguments ``num_items_in_batch``, the
    labels of all micro-batches on all processes, and adds their losses up. What else belongs to a
    step's loss must have the same weight, or gradient accumulation multiplies it. Labels are
    counted as the Trainer counts them: none that is -100, and no first token of a causal model.
    """
    total, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
    if total is None or not isinstance(labels, Tensor):
        return None
    if isinstance(shifted := inputs.get("shift_labels"), Tensor):
        labels = shifted
    elif _shifts_labels(model):
        labels = labels[..., 1:]
    whole = total.to(labels.device) if isinstance(total, Tensor) else total
    return labels.ne(-100).sum() / whole


def _shifts_labels(model: nn.Module) -> bool:
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss and not encodes
