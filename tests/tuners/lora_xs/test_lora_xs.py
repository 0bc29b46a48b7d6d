"""LoRA-XS as a method: where it starts, what it trains, what it saves."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora.conversion import save_as_lora
from safetensors.torch import load_file
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from lora2.tuners.lora_xs import LoraXsConfig

PUBLISHED = ["query", "value", "attention.output.dense", "output.dense"]


def classifier(**changes) -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    kwargs = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    }
    return RobertaForSequenceClassification(RobertaConfig(**(kwargs | changes))).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids).logits


def adapted(**changes) -> PeftModel:
    kwargs = {"r": 4, "target_modules": PUBLISHED} | changes
    return get_peft_model(classifier(), LoraXsConfig(**kwargs)).eval()


def test_starts_at_the_frozen_model():
    model = adapted()
    torch.testing.assert_close(logits(model), logits(classifier()), atol=1e-3, rtol=0)
    cores = [p for name, p in model.named_parameters() if "loraxs_R" in name]
    drawn = torch.cat([core.detach().flatten() for core in cores])
    assert 0.8e-5 < float(drawn.std()) < 1.2e-5
    assert not torch.allclose(logits(adapted(init_std=0.5)), logits(classifier()), atol=1e-3)


@pytest.mark.parametrize("r", [4, 16, 25])
def test_roberta_large_trains_96_r_squared(r):
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        base = classifier(**large, intermediate_size=4096)
    config = LoraXsConfig(r=r, target_modules=PUBLISHED)
    model = get_peft_model(base, config, low_cpu_mem_usage=True)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 96 * r**2


def test_what_is_saved(tmp_path):
    model = adapted(init_std=0.5)
    model.save_pretrained(tmp_path)
    kinds = {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")}
    assert kinds == {"loraxs_R", "loraxs_A", "loraxs_B"}


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_saved_basis_does_not_depend_on_the_new_base(low_cpu_mem_usage, tmp_path):
    model = adapted(init_std=0.5)
    model.save_pretrained(tmp_path)
    other = classifier()
    query = other.roberta.encoder.layer[0].attention.self.query
    nn.init.normal_(query.weight)
    loaded = PeftModel.from_pretrained(other, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    pick = "roberta.encoder.layer.0.attention.self.query"
    ours = loaded.base_model.model.get_submodule(pick)
    wanted = model.base_model.model.get_submodule(pick)
    assert torch.equal(ours.get_delta_weight("default"), wanted.get_delta_weight("default"))


def test_becomes_lora_by_peft_s_own_conversion(tmp_path):
    model = adapted(init_std=0.5)
    save_as_lora(tmp_path, model, rank=4)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def test_settings():
    with pytest.raises(ValueError, match=r"r=0 .*init_std=-1.0 "):
        LoraXsConfig(r=0, init_std=-1.0)
