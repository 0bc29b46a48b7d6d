"""A pruned SoRA adapter is a plain LoRA adapter."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lora2 import SoraConfig, export_lora, to_lora

TARGETS = ["query", "value", "intermediate.dense"]


def classifier() -> RobertaForSequenceClassification:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    return RobertaForSequenceClassification(config).eval()


def pruned(base=None, kept=(0, 1, 2, 3, 4, 2), **changes) -> PeftModel:
    """Six modules with 0, 1, 2, 3, 4 and 2 of 4 gates left, and a head that was trained."""
    kwargs = {"r": 4, "target_modules": TARGETS, "task_type": "SEQ_CLS"} | changes
    model = get_peft_model(base or classifier(), SoraConfig(init_weights=False, **kwargs)).eval()
    with torch.no_grad():
        for count, (_, layer) in zip(
            kept, model.base_model.adapted_layers("default").items(), strict=True
        ):
            layer.sora_gate["default"][torch.randperm(4)[count:]] = 0.0
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids).logits


@pytest.mark.parametrize("heads", [None, ["classifier"]])
def test_exported_equals_gated(heads, tmp_path):
    model = pruned(modules_to_save=heads)
    wanted = logits(model)
    folder = export_lora(model, tmp_path / "lora")
    state = load_file(folder / "adapter_model.safetensors")
    ranks = [len(t) for key, t in state.items() if key.endswith("lora_A.weight")]
    assert ranks == [4] * 6
    assert not any("sora_" in key for key in state)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # PEFT's for patterns that match nothing
        loaded = PeftModel.from_pretrained(classifier(), folder).eval()
    assert type(loaded.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(wanted, logits(classifier()), atol=1e-3)


@pytest.mark.slow
def test_loads_where_lora2_was_never_imported(tmp_path):
    model = pruned()
    export_lora(model, tmp_path / "lora")
    model.unload().save_pretrained(tmp_path / "base")
    code = (
        "import sys\n"
        "from peft import PeftModel\n"
        "from transformers import RobertaForSequenceClassification as R\n"
        "model = PeftModel.from_pretrained(R.from_pretrained(sys.argv[1]), sys.argv[2])\n"
        "assert 'lora2' not in sys.modules\n"
        "print(sum('lora_A' in name for name, _ in model.named_parameters()))\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "lora")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "6"


def test_no_gate_left_anywhere(tmp_path):
    model = pruned(kept=(0,) * 6)
    loaded = PeftModel.from_pretrained(classifier(), export_lora(model, tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 6


def test_a_program_that_scales_by_alpha_over_a_tensors_rank_computes_the_same():
    """llama.cpp, for one: it reads one alpha of the config and the rank of each tensor."""
    model = pruned()
    config, state = to_lora(model)
    assert not config.rank_pattern and not config.alpha_pattern
    for key, layer in model.base_model.adapted_layers("default").items():
        if layer.sora_gate["default"].any():
            a, b = (state[f"base_model.model.{key}.lora_{one}.weight"] for one in "AB")
            update = config.lora_alpha / len(a) * b @ a
            torch.testing.assert_close(update, layer.get_delta_weight("default").detach())


def test_an_export_in_half_precision_rounds_once():
    model = pruned(lora_alpha=3)
    for _, layer in model.base_model.adapted_layers("default").items():
        layer.bfloat16()
    _, state = to_lora(model)
    for key, layer in model.base_model.adapted_layers("default").items():
        gate = layer.sora_gate["default"].double()
        kept = gate != 0
        if kept.any():
            wide = layer.sora_B["default"].double() * gate * layer.scaling["default"]
            b = state[f"base_model.model.{key}.lora_B.weight"][:, : int(kept.sum())]
            # Through float32, in which the product of three is itself not exact.
            assert torch.equal(b, wide[:, kept].float().bfloat16())


def test_conv1d(tmp_path):
    def gpt2() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=40)
        return GPT2LMHeadModel(config).eval()

    model = pruned(gpt2(), kept=(1, 3), target_modules=["c_attn"], task_type="CAUSAL_LM")
    folder = export_lora(model, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fan_in_fan_out")
        loaded = PeftModel.from_pretrained(gpt2(), folder).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)


def test_kept_ranks_are_the_gates_that_are_not_zero():
    assert [sum(g) for g in pruned().base_model.kept_ranks().values()] == [0, 1, 2, 3, 4, 2]


def test_names_that_end_alike_keep_their_own_factors():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(4, 4)
            self.sub = torch.nn.ModuleDict({"lin": torch.nn.Linear(4, 4)})

        def forward(self, x):
            return self.sub["lin"](self.lin(x))

    net = Net()
    model = pruned(net, kept=(1, 3), target_modules=["lin"], task_type=None)
    lora, state = to_lora(model)
    wanted = model(torch.eye(4)).detach()
    loaded = get_peft_model(model.unload(), lora)
    assert loaded.base_model.model.sub["lin"].r["default"] == 3
    assert loaded.base_model.model.lin.r["default"] == 3
    for key, value in state.items():
        loaded.get_parameter(key.replace(".weight", ".default.weight")).data.copy_(value)
    torch.testing.assert_close(loaded.eval()(torch.eye(4)), wanted)


def test_other_adapters_are_refused():
    with pytest.raises(ValueError, match=r"no adapter 'other'; loaded are \['default'\]"):
        to_lora(pruned(), "other")
    plain = get_peft_model(classifier(), LoraConfig(target_modules=["query"]))
    with pytest.raises(TypeError, match="not LoraModel"):
        to_lora(plain)
