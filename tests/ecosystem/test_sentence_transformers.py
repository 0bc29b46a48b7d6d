"""sentence-transformers adds adapters by transformers' add_adapter and has its own loss."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertModel

from lora2 import Lora2Callback, Lora2Config
from tests.ecosystem.tiny import save_tokenizer

pytestmark = pytest.mark.ecosystem


def test_an_encoder_is_trained_and_pruned(tmp_path):
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=32, intermediate_size=32, **sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    config = Lora2Config(r=4, k=2, target_r=1, tfinal=2, target_modules=["query", "value"])
    model.add_adapter(config)
    rows = [" ".join("abcdefgh"[i % 8 :]) for i in range(16)]
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=8, report_to="none", use_cpu=True
        ),
        train_dataset=Dataset.from_dict({"anchor": rows, "positive": rows[::-1]}),
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[Lora2Callback()],
    )
    trainer.train()
    masks = [m.lora2_mask["default"] for m in model.modules() if hasattr(m, "lora2_mask")]
    assert len(masks) == 4 and sum(int(mask.sum()) for mask in masks) == 4
