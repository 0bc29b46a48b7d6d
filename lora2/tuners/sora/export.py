"""What is left of a SoRA adapter once the zero gates are dropped."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from lora2.tuners.replace import wide
from lora2.tuners.sora.layer import SoraLinear
from lora2.tuners.sora.model import SoraModel

PREFIX = "base_model.model."


def _sora(model: PeftModel, adapter_name: str | None) -> tuple[SoraModel, str]:
    tuner = model.base_model
    name = adapter_name or model.active_adapter
    if not isinstance(tuner, SoraModel) or name not in tuner.peft_config:
        raise ValueError(
            f"the model has no SoRA adapter {name!r}; its adapters are {sorted(model.peft_config)}"
        )
    return tuner, name


def surviving_parameters(model: PeftModel, adapter_name: str | None = None) -> int:
    """Parameters of the adapter after pruning: kept (d_in + d_out) + kept, summed over the modules.

    ``kept`` is a module's number of non-zero gates. The head (modules_to_save) is not counted.
    """
    tuner, name = _sora(model, adapter_name)
    return sum(
        int(layer.sora_gate[name].count_nonzero()) * (layer.in_features + layer.out_features + 1)
        for _, layer in tuner.layers(name)
    )


@torch.no_grad()
def _factors(layer: SoraLinear, name: str) -> tuple[Tensor, Tensor]:
    """A (kept, d_in) and s B diag(g) (d_out, kept) of the kept gates."""
    gate = layer.sora_gate[name]
    kept = gate.nonzero().squeeze(1)  # (r,) -> (kept,)
    a = layer.sora_A[name][kept]
    B = layer.sora_B[name]
    b = (wide(B[:, kept]) * (wide(gate[kept]) * layer.scaling[name])).to(B.dtype)  # rounded once
    return a.cpu().contiguous(), b.cpu().contiguous()


def to_lora(
    model: PeftModel, adapter_name: str | None = None
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The pruned adapter as plain LoRA: its config and its state dict, with the head.

    Gate and scale are folded into B. Every module gets the largest rank, filled up with zeros, and
    lora_alpha is that rank: the scale is 1 in every program, whichever rank it divides by. A module
    that has no gate left is no target any more. Should no module have one, the first stays as a
    zero update of rank 1, since PEFT loads no adapter without a target.
    """
    tuner, name = _sora(model, adapter_name)
    factors = {key: _factors(layer, name) for key, layer in tuner.layers(name)}
    kept = {key: (a, b) for key, (a, b) in factors.items() if len(a) > 0}
    if not kept:
        key, (a, b) = next(iter(factors.items()))
        kept = {key: (a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1))}
    saved = get_peft_model_state_dict(model, adapter_name=name)
    ours = SoraLinear.adapter_layer_names
    state = {key: value.cpu() for key, value in saved.items() if key.rpartition(".")[2] not in ours}
    rank = max(len(a) for a, _ in kept.values())
    for key, (a, b) in kept.items():
        missing = rank - len(a)
        state[f"{PREFIX}{key}.lora_A.weight"] = pad(a, (0, 0, 0, missing))
        state[f"{PREFIX}{key}.lora_B.weight"] = pad(b, (0, missing))
    config = tuner.peft_config[name]
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(kept),
        fan_in_fan_out=all(layer.fan_in_fan_out for _, layer in tuner.layers(name)),
        lora_dropout=config.lora_dropout,
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    return lora, state


def export_lora(model: PeftModel, folder: str | Path, adapter_name: str | None = None) -> Path:
    """Write ``to_lora`` to ``folder``; ``PeftModel.from_pretrained(base, folder)`` needs no lora2.

    Returns:
        the folder.
    """
    folder = Path(folder)
    lora, state = to_lora(model, adapter_name)
    lora.save_pretrained(str(folder))
    save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return folder
