"""Tokenizer and encoder with a new classification head, from the hub, a folder or the package."""

from __future__ import annotations

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lora2.config.schema import Backbone
from lora2.glue.tasks import Task
from lora2.hub import offline_reason, ways_out

WORDS = "the man was in a house"


class BackboneError(RuntimeError):
    """The encoder could not be loaded; the message says why and gives the ways out."""


def load_backbone(
    backbone: Backbone, task: Task, cls_dropout: float | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load the tokenizer and a float32 sequence classifier with ``task.num_labels`` outputs.

    The head is new (drawn from torch's generator); ``cls_dropout`` is the head's dropout, None
    for the encoder's own. ``random_init`` draws the encoder's weights as well. Pickled weights are
    read with ``weights_only``; code from a model repository is never run.

    Raises:
        BackboneError: folder or hub repository not found or unreadable, or no network.
    """
    path = backbone.path or str(_shipped(backbone.name))
    # False, not left open: transformers would ask on the terminal whether to run a folder's code.
    options = {
        "revision": backbone.revision, "local_files_only": False, "trust_remote_code": False,
    }  # fmt: skip
    reason = offline_reason(backbone.path)
    if reason is not None:
        options["local_files_only"] = True
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        config = AutoConfig.from_pretrained(path, num_labels=task.num_labels, **options)
        _set_head_dropout(config, cls_dropout)
        kinds = {"dtype": torch.float32, "attn_implementation": backbone.attention}
        if backbone.random_init:
            model = AutoModelForSequenceClassification.from_config(config, **kinds)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, **kinds, **options
            )
    # transformers and safetensors raise many unrelated kinds for a missing or broken file.
    except Exception as error:
        why = f"{reason}; {error}" if reason else str(error)
        hint = ways_out([(path, "model")])
        raise BackboneError(f"the encoder {path} could not be loaded: {why}\n{hint}") from error
    _check_tokenizer(path, tokenizer, config)
    return tokenizer, model


def _check_tokenizer(
    path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> None:
    """Refuse what transformers makes where tokenizer files are missing, or are of another encoder.

    From a folder without a vocabulary it makes a tokenizer to which every word is unknown.
    """
    tokens = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    if not set(tokens) - {tokenizer.unk_token_id}:
        why = f"its tokenizer knows none of the words {WORDS!r}: are its files there?"
    elif max(tokenizer.get_vocab().values()) >= config.vocab_size:
        why = (
            f"its tokenizer has {max(tokenizer.get_vocab().values()) + 1:,} tokens and its "
            f"weights {config.vocab_size:,}: are they of two encoders?"
        )
    else:
        return
    raise BackboneError(f"the encoder {path} cannot be used: {why}\n{ways_out([(path, 'model')])}")


def _shipped(name: str):
    from lora2.embedded import encoder_path

    return encoder_path(name)


def _set_head_dropout(config: PreTrainedConfig, dropout: float | None) -> None:
    if dropout is None:
        return
    key = "cls_dropout" if config.model_type.startswith("deberta") else "classifier_dropout"
    setattr(config, key, dropout)
