"""An adapter as a plain LoRA adapter with the same update, which every LoRA server loads."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from lora2.tuners.base import AdapterModel
from lora2.tuners.parameters import StackedAdapters

_PREFIX = "base_model.model."
# Settings that a plain LoRA has in common with the adapter.
_SAME = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
         "target_parameters", "lora_dropout", "fan_in_fan_out", "modules_to_save", "task_type",
         "base_model_name_or_path", "revision")  # fmt: skip


@torch.no_grad()
def to_lora(
    peft_model: PeftModel, adapter_name: str | None = None
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return config and state dict of a plain LoRA with the update of ``adapter_name`` or active.

    The update is the same up to one rounding to the adapter's dtype; the scale is folded into B and
    lora_alpha is the rank, so that it is 1 in every program. Modules in ``modules_to_save`` come
    along. All matrices get the largest rank (k for LoRA2; SoRA: gates left), filled up with zeros.

    Raises:
        TypeError: the model has no adapters of this package.
        ValueError: there is no such adapter, or it trains biases.
    """
    tuner = peft_model.base_model
    if not isinstance(tuner, AdapterModel):
        raise TypeError(
            f"to_lora takes a PeftModel with LoRA2, SoRA or LoRA-XS, not {type(tuner).__name__}: "
            f"save an adapter of transformers' add_adapter, load it with PeftModel.from_pretrained"
        )
    name = adapter_name or peft_model.active_adapter
    if name not in tuner.peft_config:
        raise ValueError(f"no adapter {name!r}; loaded are {list(tuner.peft_config)}")
    config = tuner.peft_config[name]
    if getattr(config, "bias", "none") != "none":
        raise ValueError(
            f"bias={config.bias!r} cannot be exported, because a LoRA adapter would also train the "
            f"biases of other modules: train with bias='none', or use merge_and_unload"
        )
    pairs = dict[str, tuple[Tensor, Tensor]]()  # LoRA's A (k, d_in) and B (d_out, k)
    for key, layer in tuner.adapted_layers(name).items():
        dtype = getattr(layer, layer.adapter_layer_names[0])[name].dtype
        first, second = layer.thin_factors(name)
        pairs[key] = first.T.to(dtype), second.T.to(dtype)
    rank = max(1, *(len(a) for a, _ in pairs.values()))  # PEFT has no LoRA of rank 0
    for key, (a, b) in pairs.items():
        pairs[key] = pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - len(a)))
    for key, module in tuner.model.named_modules():
        if isinstance(module, StackedAdapters):
            _join(key, module, pairs)
    saved = get_peft_model_state_dict(peft_model, adapter_name=name)
    state = {key: value for key, value in saved.items() if f".{tuner.prefix}" not in key}
    for key, (a, b) in pairs.items():
        state[f"{_PREFIX}{key}.lora_A.weight"] = a
        state[f"{_PREFIX}{key}.lora_B.weight"] = b
    settings = {key: getattr(config, key) for key in _SAME}
    return LoraConfig(**settings, r=rank, lora_alpha=rank, inference_mode=True), state


def _join(key: str, module: StackedAdapters, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Put a stack's E pairs together as PEFT's LoRA keeps them, one wrapper in the other."""
    adapted = [name for name in module.stacks if f"{key}.stacks.{name}.0" in pairs]
    for depth, name in enumerate(reversed(adapted)):
        each = [pairs.pop(f"{key}.stacks.{name}.{at}") for at in range(len(module.layers(name)))]
        a = torch.cat([a for a, _ in each])  # E times (k, d_in) -> (E k, d_in)
        b = torch.stack([b for _, b in each], -1).flatten(1)  # (d_out, k, E) -> (d_out, k E)
        pairs[key + ".base_layer" * depth] = a, b


def export_lora(peft_model: PeftModel, folder: str | Path, adapter_name: str | None = None) -> Path:
    """Write ``to_lora`` to ``folder``, for ``PeftModel.from_pretrained``; return the folder."""
    config, state = to_lora(peft_model, adapter_name)
    config.save_pretrained(str(folder))
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(state, Path(folder) / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return Path(folder)
