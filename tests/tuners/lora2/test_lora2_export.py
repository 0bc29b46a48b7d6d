from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.hotswap import hotswap_adapter

from lora2 import Lora2Config, export_lora, to_lora
from tests.tuners.lora2.lora2_models import HEADS, adapt, batch, build, logits, randomize


@pytest.mark.parametrize("arch", ["bert", "roberta", "deberta-v2", "gpt2"])
def test_plain_peft_loads_the_export_with_equal_outputs(arch, tmp_path):
    settings = {"r": 4, "k": 3, "lora_alpha": 7, "modules_to_save": HEADS[arch]}
    model = randomize(adapt(arch, dtype=torch.float64, **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(0.01)
    export_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(build(arch, dtype=torch.float64), tmp_path / "lora")
    config = loaded.peft_config["default"]
    assert type(config) is LoraConfig and config.r == 3
    lora_layers = [m for m in loaded.modules() if isinstance(m, LoraLinear)]
    assert len(lora_layers) == len(model.base_model.kept_ranks())
    assert all(layer.scaling["default"] == 1 for layer in lora_layers)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-12, atol=1e-12)
    assert (logits(model) - logits(build(arch, dtype=torch.float64))).abs().max() > 1e-3


def test_a_named_adapter_and_a_subset_of_layers_are_exported():
    model = randomize(adapt("roberta", dtype=torch.float64, task_type=None))
    only = Lora2Config(r=4, k=1, target_modules=["query"], layers_to_transform=[1])
    model.add_adapter("only", only)
    randomize(model, "only")
    model.set_adapter("only")
    config, state = to_lora(model, "only")
    assert sorted(state) == [
        f"base_model.model.roberta.encoder.layer.1.attention.self.query.lora_{ab}.weight"
        for ab in "AB"
    ]
    assert config.layers_to_transform == [1]


def test_exports_do_what_loras_adapters_do(tmp_path):
    """A mixed batch, a weighted sum, and one adapter in the place of another."""
    inputs, expected = batch(rows=2), {}
    inputs.pop("labels")
    for seed in (1, 2):
        ours = randomize(adapt("roberta", task_type=None), seed=seed)
        expected[f"a{seed}"] = logits(ours)
        export_lora(ours, tmp_path / f"a{seed}")
    lora = PeftModel.from_pretrained(build("roberta"), tmp_path / "a1", adapter_name="a1").eval()
    lora.load_adapter(tmp_path / "a2", adapter_name="a2")
    with torch.no_grad():
        both = {name: lora(**inputs, adapter_names=[name] * 2).logits for name in ("a1", "a2")}
        mixed = lora(**inputs, adapter_names=["a1", "a2"]).logits
    torch.testing.assert_close(mixed[0], both["a1"][0])
    torch.testing.assert_close(mixed[1], both["a2"][1])
    lora.add_weighted_adapter(["a1", "a2"], [1.0, 0.0], "sum", combination_type="cat")
    lora.set_adapter("sum")
    torch.testing.assert_close(logits(lora), expected["a1"], rtol=1e-4, atol=1e-4)
    lora.set_adapter("a1")
    hotswap_adapter(lora, str(tmp_path / "a2"), adapter_name="a1")
    torch.testing.assert_close(logits(lora), expected["a2"], rtol=1e-4, atol=1e-4)
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="LORA2"):
        hotswap_adapter(ours, str(tmp_path / "ours"), adapter_name="default")


def test_what_cannot_be_exported_says_why():
    with pytest.raises(ValueError, match="bias='lora2_only' cannot be exported"):
        to_lora(adapt("roberta", bias="lora2_only"))
    with pytest.raises(ValueError, match=r"no adapter 'other'; loaded are \['default'\]"):
        to_lora(adapt("roberta"), "other")
    lora = get_peft_model(build("roberta"), LoraConfig(target_modules=["query"]))
    with pytest.raises(TypeError, match="not LoraModel"):
        to_lora(lora)
