"""Stacked weights, as the experts of a mixture have them: each matrix gets an adapter."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lora2 import Lora2Config, LoraXsConfig, SoraConfig, export_lora

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
CONFIGS = [Lora2Config, SoraConfig, LoraXsConfig]
SIZES = {
    "vocab_size": 30, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
    "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 2,
}  # fmt: skip
INPUTS = {"input_ids": torch.arange(20).view(2, 10)}


def qwen():  # (E, d_out, d_in)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SIZES, moe_intermediate_size=12, num_experts=4)
    return Qwen3MoeForCausalLM(config).eval()


def gpt_oss():  # (E, d_in, d_out)
    torch.manual_seed(0)
    config = GptOssConfig(**SIZES, num_local_experts=4, pad_token_id=0)
    return GptOssForCausalLM(config).eval()


def adapted(family, config=Lora2Config, **settings):
    torch.manual_seed(1)
    settings = {"r": 3, "target_modules": [], "target_parameters": EXPERTS} | settings
    start = {"init_std": 0.5} if config is LoraXsConfig else {"init_weights": False}
    return get_peft_model(family(), config(**(start | settings)))


@torch.no_grad()
def logits(model):
    return model.eval()(**INPUTS).logits


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("family", "more"),
    [(qwen, {}), (gpt_oss, {}), (gpt_oss, {"target_modules": None}),
     (qwen, {"target_modules": ["q_proj"], "target_parameters": [*EXPERTS, "gate.weight"]})],
)  # fmt: skip
def test_merged_exported_and_loaded_adapters_give_the_same(config, family, more, tmp_path):
    model, base = adapted(family, config, **more), logits(family())
    expected = logits(model)
    assert (expected - base).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    export_lora(model, tmp_path / "lora")
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(PeftModel.from_pretrained(family(), tmp_path / "own")), expected)
    lora = PeftModel.from_pretrained(family(), tmp_path / "lora")
    assert type(lora.peft_config["default"]).__name__ == "LoraConfig"
    near = {"rtol": 1e-5, "atol": 1e-6}  # float32
    torch.testing.assert_close(logits(lora), expected, **near)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, **near)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), base, **near)
    names = list(family().state_dict())
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), expected, **near)
    assert list(merged.state_dict()) == names
    assert not any("experts" in n and hasattr(m, "stacks") for n, m in merged.named_modules())


def test_all_linear_leaves_another_adapters_experts_alone(recwarn):
    model = adapted(qwen)
    model.add_adapter("other", Lora2Config(r=2, target_modules="all-linear"))
    named = model.base_model.adapted_layers("other")
    assert len(named) == 2 * 4 and not [name for name in named if "experts" in name]
    assert not [w for w in recwarn if "match nothing" in str(w.message)]


def test_an_expert_is_a_matrix_with_its_own_ranks():
    settings = {"target_r": 1, "tfinal": 2, "init_weights": True, "orth_reg_weight": 0.1}
    model = adapted(qwen, k=2, target_modules=["q_proj"], **settings).train()
    tuner = model.base_model
    assert len(tuner.kept_ranks()) == 2 + 2 * 4 * 2
    tuner.prepare_training(12)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(1, 13):
        model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        nonzero = [bool(g.any()) for g in gradients]
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
    assert len(nonzero) == 18 * 5 and all(nonzero)
    tuner.finish_training()
    ranks = {name: sum(kept) for name, kept in tuner.kept_ranks().items()}
    assert sum(ranks.values()) == len(ranks) and len(set(ranks.values())) > 1


def test_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointed in (False, True):
        model = adapted(qwen, k=2).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_second_adapter_stands_beside_the_first():
    model = adapted(qwen)
    first = logits(model)
    model.add_adapter("other", model.peft_config["default"])
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    other = logits(model)
    assert (other - first).abs().max() > 1e-3
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert (both - first).abs().max() > 1e-3 and (both - other).abs().max() > 1e-3
    model.delete_adapter("default")
    assert torch.equal(logits(model), other)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_cannot_be_adapted_is_refused(config):
    with pytest.raises(ValueError, match=r"lora_dropout=0.1 \(allowed: 0 beside target_parameters"):
        adapted(qwen, config, lora_dropout=0.1)
    with pytest.raises(TypeError, match=r"q_norm.weight is a torch.float32 parameter of 1 dim"):
        adapted(qwen, config, target_parameters=["q_norm.weight"])
    with pytest.warns(UserWarning, match=r"match nothing that can be adapted: \['experts.w3'\]"):
        adapted(qwen, config, target_parameters=[*EXPERTS, "experts.w3"])
