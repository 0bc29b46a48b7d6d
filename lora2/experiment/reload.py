"""A finished run's model again, as it was at its last step."""

from __future__ import annotations

from pathlib import Path

import yaml
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

import lora2
from lora2.experiment.backbone import load_backbone
from lora2.experiment.config import build
from lora2.experiment.paths import status
from lora2.experiment.schema import RunConfig
from lora2.glue.tasks import TASKS


def read_config(folder: Path) -> RunConfig:
    """Return the resolved configuration of the run in ``folder``."""
    return build(yaml.safe_load((folder / "config.yaml").read_text()))


def load_run(folder: Path) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Return tokenizer and model (in evaluation mode) of a finished run.

    The encoder comes from where the run took it; the trained parameters from ``folder/adapter``.

    Raises:
        ValueError: ``folder`` holds no finished run, or its parameters fit another model.
    """
    if status(folder) != "finished":
        raise ValueError(f"{folder} holds no finished run (status: {status(folder)})")
    lora2.register()
    config = read_config(folder)
    set_seed(config.seed)  # backbone.random_init draws the same encoder again
    task = TASKS[config.task]
    tokenizer, base = load_backbone(config.backbone, task, config.train.cls_dropout)
    adapter = folder / "adapter"
    if (adapter / "adapter_config.json").is_file():
        model: nn.Module = PeftModel.from_pretrained(base, str(adapter))
        return tokenizer, model.eval()
    trained = load_file(str(adapter / "trainable.safetensors"))
    unknown = base.load_state_dict(trained, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{adapter} was saved from another encoder: it has no {unknown[0]}")
    return tokenizer, base.eval()
