"""sentence-transformers adds adapters by transformers' add_adapter and has its own loss."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from lora2 import Lora2Callback, Lora2Config
from tests.ecosystem.tiny import save_tokenizer

pytestmark = pytest.mark.ecosystem


def train(folder, **settings):
    """Return a SentenceTransformer after eight steps with an adapter of these settings."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=32, intermediate_size=32, **sizes)).save_pretrained(folder)
    save_tokenizer(folder)
    model = SentenceTransformer(str(folder), device="cpu")
    model.add_adapter(Lora2Config(r=4, k=2, target_modules=["query", "value"], **settings))
    rows = [" ".join("abcdefgh"[i % 8 :]) for i in range(16)]
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(folder / "out"), max_steps=8, report_to="none", use_cpu=True,
            learning_rate=1e-2,
        ),
        train_dataset=Dataset.from_dict({"anchor": rows, "positive": rows[::-1]}),
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[Lora2Callback()],
    )  # fmt: skip
    trainer.train()
    return model


def test_an_encoder_is_trained_and_pruned(tmp_path):
    model = train(tmp_path, target_r=1, tfinal=2)
    masks = [m.lora2_mask["default"] for m in model.modules() if hasattr(m, "lora2_mask")]
    assert len(masks) == 4 and sum(int(mask.sum()) for mask in masks) == 4


def test_the_penalty_acts_though_the_loss_is_theirs(tmp_path):
    factors = []
    for weight in (0.0, 100.0):
        model = train(tmp_path, orth_reg_weight=weight, init_std=0.2)
        named = dict(model.named_parameters())
        factors.append(torch.cat([p.flatten() for name, p in named.items() if "lora2_u" in name]))
    assert (factors[0] - factors[1]).abs().max() > 0.01
