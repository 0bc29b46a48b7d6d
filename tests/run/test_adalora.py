from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification

from lora2.run.adalora import AdaloraDriver

INPUTS = {"input_ids": torch.arange(3, 15).view(2, 6), "labels": torch.tensor([0, 1])}


def adalora(seed: int = 0):
    torch.manual_seed(seed)
    base = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    config = AdaLoraConfig(
        init_r=4, target_r=2, target_modules=["query"], total_step=9, tinit=1, tfinal=3,
        orth_reg_weight=2.0, task_type="SEQ_CLS",
    )  # fmt: skip
    model = get_peft_model(base, config)
    return model, AdaloraDriver(model)


def test_a_state_that_was_not_saved_with_the_weights_is_refused():
    model, driver = adalora()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_E" in name:
                parameter.add_(1.0)
    state = driver.training_state()
    driver.load_training_state(state)
    with pytest.raises(ValueError, match="not saved with the weights"):
        adalora(seed=1)[1].load_training_state(state)


def test_the_orthogonality_term_is_left_out_of_evaluation():
    model, _ = adalora()
    model.eval()
    plain = model(**INPUTS).loss
    assert model.train()(**INPUTS).loss > plain + 0.1
