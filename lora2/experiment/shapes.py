"""Encoders by shape alone: their time and memory do not depend on the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lora2.experiment.schema import Backbone
from lora2.glue.tasks import Task

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


def encoder_config(backbone: Backbone) -> PreTrainedConfig:
    """Return the encoder's configuration from its folder, the package, or ``SHAPES``.

    Raises:
        LookupError: an encoder of which neither a folder nor the shape is here.
    """
    if backbone.path is None:
        from lora2.embedded import encoder_path

        return AutoConfig.from_pretrained(encoder_path(backbone.name))
    folder = Path(backbone.path).expanduser()
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder)
    if backbone.name not in SHAPES:
        raise LookupError(
            f"the shape of {backbone.name} is not known here: give backbone.path=DIR with its "
            "config.json"
        )
    values = dict(SHAPES[backbone.name])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def random_encoder(backbone: Backbone, task: Task) -> PreTrainedModel:
    """Return a classifier of the encoder's shape with weights drawn from torch's generator."""
    config = encoder_config(backbone)
    config.num_labels = task.num_labels
    return AutoModelForSequenceClassification.from_config(config)


def longest(config: PreTrainedConfig, wanted: int) -> int:
    """Return ``wanted`` tokens, or as many as the encoder has positions for."""
    # RoBERTa's positions start after the padding token's.
    room = config.max_position_embeddings - (2 if config.model_type == "roberta" else 0)
    return min(wanted, room)
