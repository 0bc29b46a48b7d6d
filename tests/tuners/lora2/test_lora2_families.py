"""A tiny model of a family beside encoders and decoders: a training step and a merge."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lora2 import Lora2Config


def t5():
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    ids = torch.randint(1, 30, (2, 6))
    return T5ForConditionalGeneration(config), {"input_ids": ids, "labels": ids}


def vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])}
    return ViTForImageClassification(config), inputs


def whisper():
    config = WhisperConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=4,
        max_source_positions=10, max_target_positions=12, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(2, 4, 20), "labels": torch.randint(3, 30, (2, 6))}
    return WhisperForConditionalGeneration(config), inputs


@pytest.mark.parametrize("family", [t5, vit, whisper])
def test_a_step_and_a_merge(family):
    torch.manual_seed(0)
    base, inputs = family()
    config = Lora2Config(r=4, k=2, target_modules="all-linear", init_weights=False)
    model = get_peft_model(base.eval(), config)
    first = model(**inputs)
    model.train()(**inputs).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if ".lora2_lambda." in n]
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)
    assert (model.eval()(**inputs).logits - first.logits).abs().max() == 0
    with model.disable_adapter():
        assert (model(**inputs).logits - first.logits).abs().max() > 1e-4
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, first.logits, rtol=1e-4, atol=1e-4)
