"""The methods at fixed settings: Table 1's ranks, the paper's six matrices, every part on."""

from __future__ import annotations

import dataclasses
from typing import Any

from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

from lora2.bench.encoders import head_modules
from lora2.experiment.adalora import AdaloraDriver
from lora2.tuners.bitfit import train_biases
from lora2.tuners.lora2 import Lora2Config
from lora2.tuners.lora_xs import LoraXsConfig
from lora2.tuners.sora import SoraConfig

STEPS = 100_000  # of the pretended training: no bench gets to its last phase
MATRICES = {  # in DeBERTa, RoBERTa and BERT
    "query": r"attention\.self\.query(?:_proj)?",
    "key": r"attention\.self\.key(?:_proj)?",
    "value": r"attention\.self\.value(?:_proj)?",
    "attention_output": r"attention\.output\.dense",
    "intermediate": r"intermediate\.dense",
    "output": r"output\.dense",
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of a bench: a method and its ranks. LoRA-XS adapts four matrices, the others six."""

    row: str  # the id that the tables' rows have
    label: str
    name: str
    r: int = 8
    k: int = 8


ROWS = (
    Method("full", "Full fine-tuning", "full"),
    Method("bitfit", "BitFit", "bitfit"),
    Method("lora-r8", "LoRA r=8", "lora"),
    Method("adalora-r8", "AdaLoRA r=8", "adalora"),
    Method("sora-r8", "SoRA r=8", "sora"),
    Method("lora2-k1", "LoRA² k=1", "lora2", k=1),
    Method("lora2-k8", "LoRA² k=8", "lora2"),
    Method("lora-xs", "LoRA-XS r=16", "lora_xs", r=16),
)
METHODS = {one.row: one for one in ROWS}


def prepare(model: nn.Module, method: Method, steps: int = STEPS) -> tuple[nn.Module, Any]:
    """Return the model to train and its driver (hooks as in ``lora2.callbacks``), or None.

    An allocator starts at once (tinit = 0) and masks after every step: its dear part is on.
    """
    if method.name == "full":
        return model, None
    if method.name == "bitfit":
        train_biases(model, head_modules(model))
        return model, None
    adapted = get_peft_model(model, peft_config(model, method, steps))
    if method.name == "adalora":
        return adapted, AdaloraDriver(adapted)
    tuner = adapted.base_model
    return adapted, tuner if hasattr(type(tuner), "training_state") else None


def peft_config(model: nn.Module, method: Method, steps: int) -> Any:
    """Return the configuration of a method that PEFT knows."""
    common = {
        "target_modules": targets(*MATRICES),
        "modules_to_save": head_modules(model),
        "task_type": "SEQ_CLS",
    }
    phases = {"tinit": 0, "tfinal": steps // 10, "deltaT": 1, "total_step": steps}
    regularized = {**common, **phases, "orth_reg_weight": 0.1, "lora_alpha": 32}
    if method.name == "lora":
        return LoraConfig(r=method.r, lora_alpha=16, **common)
    if method.name == "adalora":  # its authors start at 1.5 times the target
        return AdaLoraConfig(target_r=method.r, init_r=method.r * 3 // 2, **regularized)
    if method.name == "lora2":
        kept = max(1, method.r * 3 // 8)  # the public scripts': 3 of 8
        prunes = {"target_r": kept} if kept < method.r else {}
        return Lora2Config(r=method.r, k=method.k, **prunes, **regularized)
    if method.name == "sora":
        return SoraConfig(r=method.r, sparse_lambda=1e-3, **common)
    four = targets("query", "value", "attention_output", "output")  # its authors'
    return LoraXsConfig(r=method.r, **{**common, "target_modules": four})


def targets(*matrices: str) -> str:
    """Return a regular expression for PEFT that matches these matrices in every layer."""
    return rf".*\.layer\.\d+\.(?:{'|'.join(MATRICES[matrix] for matrix in matrices)})"
