"""Tiny randomly initialised models and a plain training loop for the LoRA2 tests."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lora2 import Lora2Config
from lora2.tuners.lora2.stacks import this_thread

ENCODER = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
TARGETS = {
    "bert": [
        "query",
        "key",
        "value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    "roberta": ["query", "key", "value", "attention.output.dense", "intermediate.dense"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "attention.output.dense"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
HEADS = {
    "bert": ["classifier", "pooler"],
    "roberta": ["classifier"],
    "deberta-v2": ["classifier", "pooler"],
    "gpt2": ["score"],
}


def build(arch: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A sequence classifier with 2 labels, in eval mode; the same weights for the same seed."""
    torch.manual_seed(seed)
    if arch == "bert":
        model = BertForSequenceClassification(BertConfig(**ENCODER))
    elif arch == "roberta":
        model = RobertaForSequenceClassification(RobertaConfig(**ENCODER))
    elif arch == "deberta-v2":
        model = DebertaV2ForSequenceClassification(
            DebertaV2Config(
                **ENCODER,
                relative_attention=True,
                position_buckets=4,
                pos_att_type=["p2c", "c2p"],
                share_att_key=True,
                norm_rel_ebd="layer_norm",
                pooler_hidden_size=16,
            )
        )
    else:
        model = GPT2ForSequenceClassification(
            GPT2Config(
                vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=1
            )
        )
    return model.to(dtype).eval()


def adapt(arch: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings) -> PeftModel:
    """``build(arch)`` with an adapter; a larger start than the default, for few steps."""
    model = build(arch, seed, dtype)
    defaults = {
        "r": 4,
        "k": 2,
        "target_modules": TARGETS[arch],
        "init_std": 0.2,
        "fan_in_fan_out": arch == "gpt2",
        "task_type": "SEQ_CLS",
    }
    return get_peft_model(model, Lora2Config(**{**defaults, **settings})).eval()


def randomize(model: PeftModel, adapter: str = "default", seed: int = 5) -> PeftModel:
    """Give every factor of ``adapter`` a value, so that the update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora2_" in name and name.endswith(f".{adapter}"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.5 * noise)
    return model


def batch(seed: int = 0, rows: int = 6, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (rows, length), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": (ids.sum(1) % 2),
    }


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)


def train(model: PeftModel, optimizer, first: int, last: int) -> None:
    """Optimiser steps ``first`` to ``last`` as a user's plain loop would make them."""
    model.train()
    for step in range(first, last + 1):
        torch.manual_seed(step)
        model(**batch(step)).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()


def logits(model: nn.Module) -> Tensor:
    """Of a fixed batch, in eval mode, without gradients."""
    model.eval()
    inputs = {key: value for key, value in batch(99).items() if key != "labels"}
    with torch.no_grad():
        return model(**inputs).logits


def cached_pairs(layer) -> dict[str, tuple[Tensor, Tensor]]:
    """The pairs of this thread's forward pass, by adapter."""
    return layer._cache.get(this_thread(), ({}, False))[0]
