"""Encoders by shape alone: their time and memory do not depend on the weights."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lora2.config.schema import Backbone

# From the config.json of each published encoder.
_FILE = resources.files("lora2.config") / "encoder_shapes.json"
SHAPES: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
HEAD_WIDTH = 64  # of one attention head, in every shape above but MiniLM's


def shaped(name: str, layers: int | None = None, width: int | None = None) -> PreTrainedConfig:
    """Return the configuration of a published encoder, with other layers or width if given.

    ``width`` is the hidden size, a multiple of 64; the feed-forward layer stays four times as wide
    and an attention head 64 wide.

    Raises:
        KeyError: no such shape.
        ValueError: a width that gives no whole number of heads.
    """
    values = dict(SHAPES[name])
    if layers is not None:
        values["num_hidden_layers"] = layers
    if width is not None:
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ValueError(f"width={width} (allowed: a multiple of {HEAD_WIDTH})")
        values |= {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // HEAD_WIDTH,
        }
        if "pooler_hidden_size" in values:
            values["pooler_hidden_size"] = width
    return AutoConfig.for_model(values.pop("model_type"), **values)


def encoder_config(backbone: Backbone) -> PreTrainedConfig:
    """Return the encoder's configuration from its folder, the package, or the shapes above.

    Raises:
        LookupError: an encoder of which neither a folder nor the shape is here.
    """
    if backbone.path is None:
        from lora2.embedded import encoder_path

        return AutoConfig.from_pretrained(encoder_path(backbone.name))
    folder = Path(backbone.path).expanduser()
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if backbone.name not in SHAPES:
        raise LookupError(
            f"the shape of {backbone.name} is not known here: give backbone.path=DIR with its "
            "config.json"
        )
    return shaped(backbone.name)


def random_encoder(
    config: PreTrainedConfig, num_labels: int = 2, attention: str | None = None
) -> PreTrainedModel:
    """Return a classifier with weights drawn from torch's generator.

    ``attention`` is transformers' name of an implementation; None takes the encoder's default.
    """
    config.num_labels = num_labels
    kinds = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, **kinds)


def longest(config: PreTrainedConfig, wanted: int) -> int:
    """Return ``wanted`` tokens, or as many as the encoder has positions for."""
    # RoBERTa's positions start after the padding token's.
    room = config.max_position_embeddings - (2 if config.model_type == "roberta" else 0)
    return min(wanted, room)
