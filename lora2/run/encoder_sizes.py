"""Encoders by shape alone: their time and memory do not depend on the weights."""

from __future__ import annotations

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
SHAPES: dict[str, dict[str, Any]] = {
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 128100,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "pooler_hidden_size": 768,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0,
    },
    "roberta-large": {
        "model_type": "roberta",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "minilm": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
}
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
