from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from lora2 import Lora2Config, LoraXsConfig, SoraConfig

NAMES = ["default", "__base__"]


def adapted(config):
    tiny = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    return get_peft_model(BertForSequenceClassification(tiny), config).eval()


@pytest.mark.parametrize("kind", [Lora2Config, SoraConfig, LoraXsConfig])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_an_adapter_for_each_row_is_refused(kind, task_type):
    model = adapted(kind(r=2, target_modules=["query"], task_type=task_type))
    rows = torch.arange(5, 15).view(2, 5)
    model(rows)
    with pytest.raises(ValueError, match=r"adapter_names=.*set_adapter"):
        model(rows, adapter_names=NAMES)


def test_pefts_lora_takes_it_the_same_way():
    model = adapted(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    rows = torch.arange(5, 15).view(2, 5)
    with model.disable_adapter():
        base = model(rows).logits
    mixed = model(rows, adapter_names=NAMES).logits
    assert not torch.equal(mixed[0], base[0])
    torch.testing.assert_close(mixed[1], base[1])
