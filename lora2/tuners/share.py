"""How much of an optimiser step's loss one forward pass contributes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss


def share_of_step(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """Return this pass's part of the step's labels, a scalar; None where its loss is a mean.

    A transformers Trainer tells the model ``num_items_in_batch``, the labels of all micro-batches
    on all processes. A causal language model's loss is a sum over its labels divided by that
    number, and the Trainer adds these losses up: what else belongs to a step's loss must have the
    same weight, or gradient accumulation multiplies it. Other models are told the number and do not
    use it. Labels are counted as the Trainer counts them: none that is -100, and no row's first.
    """
    total, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
    if total is None or not isinstance(labels, Tensor) or not _is_causal(model):
        return None
    shifted = inputs.get("shift_labels")
    counted = labels[..., 1:] if shifted is None else shifted
    whole = total.to(counted.device) if isinstance(total, Tensor) else total
    return counted.ne(-100).sum() / whole


def _is_causal(model: nn.Module) -> bool:
    """Whether the model's loss is ``ForCausalLMLoss``.

    transformers takes the kind of loss from the class's name, and this one where the name tells
    none: of those, the models named like GPT2LMHeadModel are the causal ones.
    """
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    kind = getattr(model, "loss_type", None)
    if kind is None and type(model).__name__.endswith("LMHeadModel"):
        kind = "ForCausalLM"
    return LOSS_MAPPING.get(kind) is ForCausalLMLoss and not encodes
