"""Where an adapter would have no effect, or a setting none, it is refused or named."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    WavLMConfig,
    WavLMModel,
)

from lora2 import Lora2Config, LoraXsConfig, SoraConfig
from tests.tuners.lora2.lora2_models import ENCODER, adapt, build, logits

CONFIGS = [Lora2Config, SoraConfig, LoraXsConfig]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.block(self.attention(x, x, x)[0]))


def mamba() -> MambaForCausalLM:
    config = MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4)
    return MambaForCausalLM(config)


def wavlm() -> WavLMModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    conv = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,)}
    more = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return WavLMModel(WavLMConfig(intermediate_size=8, **sizes, **conv, **more))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("model", "name"),
    [(Attention, "out_proj"), (Attention, "linear1"), (Attention, "linear2"),
     (mamba, "dt_proj"), (mamba, "out_proj"), (mamba, "x_proj"), (wavlm, "q_proj"),
     (wavlm, "out_proj")],
)  # fmt: skip
def test_a_module_whose_weight_is_read_is_refused_by_name(model, name, config):
    with pytest.raises(ValueError, match=rf"{name} cannot be adapted: \w+ reads its weight"):
        get_peft_model(model(), config(r=2, target_modules=[name]))


def test_all_linear_skips_weights_that_are_read():
    model = get_peft_model(Attention(), Lora2Config(r=2, target_modules="all-linear"))
    assert list(model.base_model.kept_ranks()) == ["head"]
    model = get_peft_model(mamba(), Lora2Config(r=2, target_modules="all-linear"))
    assert [n.split(".")[-1] for n in model.base_model.kept_ranks()] == ["in_proj"]


@pytest.mark.parametrize("arch", ["bert", "roberta", "deberta-v2", "gpt2"])
def test_all_linear_adapts_every_other_matrix(arch):
    base = build(arch)
    linear = [n for n, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    model = get_peft_model(base, Lora2Config(r=2, target_modules="all-linear"))
    assert set(linear) - set(model.base_model.kept_ranks()) <= {"classifier", "score"}


@pytest.mark.parametrize("config", CONFIGS)
def test_names_that_match_nothing_are_named(config):
    settings = config(r=2, target_modules=["query", "gate_proj", "up_proj"])
    with pytest.warns(UserWarning, match=r"match nothing.*\['gate_proj', 'up_proj'\]"):
        get_peft_model(build("bert"), settings)


def test_a_head_that_all_linear_found_and_modules_to_save_took_is_not_named(recwarn):
    saved = {"modules_to_save": ["pooler", "classifier"], "task_type": "SEQ_CLS"}
    get_peft_model(build("bert"), Lora2Config(target_modules="all-linear", **saved))
    assert not [w for w in recwarn if "match nothing" in str(w.message)]


def test_names_that_match_are_not(recwarn):
    adapt("bert")
    model = adapt("roberta", task_type=None)
    model.add_adapter("other", Lora2Config(r=2, target_modules=["key", "output.dense"]))
    assert not [w for w in recwarn if "match nothing" in str(w.message)]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [("use_rslora", True, "lora_alpha to alpha"), ("rank_pattern", {"q": 2}, "one r"),
     ("alpha_pattern", {"q": 2}, "one lora_alpha"),
     ("trainable_token_indices", [1], "modules_to_save"), ("use_dora", True, "PEFT's LoRA"),
     ("ensure_weight_tying", True, ""), ("init_lora_weights", True, "")],
)  # fmt: skip
def test_arguments_of_loraconfig_are_explained(config, name, value, instead):
    with pytest.raises(TypeError, match=rf"{config.__name__} does not take {name}: .*{instead}"):
        config(**{name: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        config(no_such=1)


def test_biases_are_trained_by_lora2_alone():
    assert Lora2Config(bias="all").bias == "all"
    for config in (SoraConfig, LoraXsConfig):
        with pytest.raises(TypeError, match="does not take bias: leave it out"):
            config(bias="none")


def test_rslora_is_the_alpha_that_the_message_gives():
    plain = Lora2Config(r=4, lora_alpha=16 * 4**0.5, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(nn.Linear(4, 4)), plain).base_model.model[0]
    assert layer.scaling["default"] == 16 / 4**0.5


@pytest.mark.parametrize("config", [Lora2Config, SoraConfig])
def test_an_offloaded_adapter_is_refused_and_a_merged_one_gives_the_same_result(config):
    def adapted():
        torch.manual_seed(0)
        model = get_peft_model(build("bert"), config(r=2, target_modules=["query"]))
        for parameter in model.parameters():  # SoRA's and LoRA2's updates start at zero
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    expected = logits(adapted())
    merged = cpu_offload(adapted().merge_and_unload(), execution_device=torch.device("cpu"))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"accelerate has offloaded .*merge_and_unload"):
        logits(cpu_offload(adapted(), execution_device=torch.device("cpu")))


def test_zero_3_is_refused_by_name():
    model = adapt("roberta", target_r=1)
    next(p for p in model.parameters() if p.requires_grad).ds_id = 0  # DeepSpeed's mark
    with pytest.raises(ValueError, match=r"ZeRO-3 .*FSDP2"):
        model.base_model.prepare_training(10)


def test_a_penalty_after_the_optimizers_step_is_refused():
    model = adapt("roberta", orth_reg_weight=0.5)
    model.base_model.prepare_training(10)
    with pytest.raises(RuntimeError, match=r"DeepSpeed .*regularization_loss"):
        model.base_model.before_optimizer_step(1)  # DeepSpeed has taken the gradients


@pytest.mark.parametrize("config", CONFIGS)
def test_no_name_of_ours_hides_the_models_own_layers(config):
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x):
            return self.layers[0](x)

    model = get_peft_model(Stack(), config(r=2, target_modules=["0"]))
    assert len(model.layers) == len(model.base_model.layers) == 1


def test_weighted_adapters_name_the_way():
    model = adapt("roberta", task_type=None)
    with pytest.raises(NotImplementedError, match=r"export_lora.*add_weighted_adapter"):
        model.add_weighted_adapter(["default"], [1.0], "mixed")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_saved_adapter_says_what_loading_takes(config, tmp_path):
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(**ENCODER))
    model = get_peft_model(base, config(r=2, target_modules=["query"]))
    for _ in range(2):  # saved again into the same folder, it says so once
        model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["requires"].startswith("the Python package lora2: `import lora2` before")
    card = (tmp_path / "README.md").read_text()
    assert card.count("This adapter needs the Python package lora2") == 1
    method = saved["peft_type"].lower()
    assert f"- {method}\n" in card and "- lora2\n" in card and "library_name: peft" in card
    loaded = PeftModel.from_pretrained(base, tmp_path).peft_config["default"]
    assert loaded.requires == saved["requires"]
