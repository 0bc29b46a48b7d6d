"""A LoRA2 adapter as a plain LoRA adapter of rank k: the same update, servable everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.layer import Lora2Linear
from lora2.tuners.lora2.model import Lora2Model


def to_lora(
    peft_model: PeftModel, adapter_name: str = "default"
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The plain LoRA adapter with the update of ``adapter_name``, exactly.

    A = u^T (k, d_in) and B = (s v diag(lambda) U V)^T (d_out, k), with LoRA's own scale at 1.
    Modules in ``modules_to_save`` come along.

    Returns:
        A LoraConfig and the state dict of ``adapter_model.safetensors``.

    Raises:
        TypeError: the model is no LoRA2 model.
        ValueError: there is no such adapter, or it trains biases.
    """
    tuner = peft_model.base_model
    if not isinstance(tuner, Lora2Model):
        raise TypeError(f"to_lora exports LoRA2 adapters, but this is a {type(tuner).__name__}")
    if adapter_name not in peft_model.peft_config:
        raise ValueError(f"no adapter {adapter_name!r}; loaded are {list(peft_model.peft_config)}")
    config = cast(Lora2Config, peft_model.peft_config[adapter_name])
    if config.bias != "none":
        raise ValueError(
            f"bias={config.bias!r} cannot be exported, because a LoRA adapter would also train the "
            f"biases of other modules: train with bias='none', or use merge_and_unload"
        )
    saved = get_peft_model_state_dict(peft_model, adapter_name=adapter_name)
    state = {key: value for key, value in saved.items() if ".lora2_" not in key}
    for name, layer in tuner.model.named_modules():
        if isinstance(layer, Lora2Linear) and adapter_name in layer.lora2_u:
            prefix = f"base_model.model.{name}"
            state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"] = _pair(
                layer, adapter_name
            )
    return _lora_config(config), state


def export_lora(peft_model: PeftModel, folder: str | Path, adapter_name: str = "default") -> None:
    """Write ``to_lora`` into ``folder``, from where ``PeftModel.from_pretrained`` loads it."""
    config, state = to_lora(peft_model, adapter_name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _lora_config(config: Lora2Config) -> LoraConfig:
    """The settings of a LoRA adapter of rank k with scale 1 on the same modules."""
    return LoraConfig(
        r=config.k,
        lora_alpha=config.k,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=config.fan_in_fan_out,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


@torch.no_grad()
def _pair(layer: Lora2Linear, adapter_name: str) -> tuple[Tensor, Tensor]:
    u, V = layer.lora2_u[adapter_name], layer.lora2_V[adapter_name]
    wide = torch.promote_types(u.dtype, torch.float32)
    B = (layer.core(adapter_name, wide) @ V.to(wide)).T  # (k, k) @ (k, d_out) -> (d_out, k)
    return u.detach().T.contiguous(), B.to(u.dtype).contiguous()
