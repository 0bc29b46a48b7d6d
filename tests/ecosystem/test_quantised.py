"""Quantised bases on a CPU: forward, backward, save, load, export, merge or a refusal of it."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from lora2 import Lora2Config, LoraXsConfig, SoraConfig, export_lora

pytestmark = pytest.mark.ecosystem
CONFIGS = [
    (Lora2Config, {"k": 2, "init_weights": False}),
    (SoraConfig, {"init_weights": False}),
    (LoraXsConfig, {"init_std": 0.1}),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def torchao_net(config) -> Net:
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    net = Net().bfloat16()
    quantize_(net, config)
    return net


def int8_config():
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def int8() -> Net:
    return torchao_net(int8_config())


def int4() -> Net:
    from torchao.quantization import IntxWeightOnlyConfig

    return torchao_net(IntxWeightOnlyConfig(weight_dtype=torch.int4))


def hqq() -> Net:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    torch.manual_seed(0)
    net = Net()
    settings = {"compute_dtype": torch.float32, "device": "cpu"}
    for name in ("first", "second"):
        config = BaseQuantizeConfig(nbits=4, group_size=64)
        setattr(net, name, HQQLinear(getattr(net, name), config, **settings))
    return net


def quanto_net(bits: int) -> Net:
    from optimum import quanto

    torch.manual_seed(0)
    net = Net()
    quanto.quantize(net, weights=getattr(quanto, f"qint{bits}"))
    quanto.freeze(net)
    return net


def quanto_int8() -> Net:
    return quanto_net(8)


def quanto_int4() -> Net:
    """quanto compiles its kernels with g++ on first use, which takes minutes."""
    return quanto_net(4)


def bnb_net(make) -> Net:
    torch.manual_seed(0)
    net, quantised = Net(), Net()
    for name in ("first", "second"):
        layer = make()
        layer.load_state_dict(getattr(net, name).state_dict())
        setattr(quantised, name, layer)
    return quantised.to("cpu")


def nf4(**settings) -> Net:
    import bitsandbytes as bnb

    def make() -> nn.Module:
        return bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32, **settings)

    return bnb_net(make)


def nf4_in_bfloat16() -> Net:
    """Its weight claims to be bfloat16."""
    return nf4(quant_storage=torch.bfloat16)


def eight_bit() -> Net:
    import bitsandbytes as bnb

    return bnb_net(lambda: bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False))


@pytest.mark.parametrize(("config", "settings"), CONFIGS, ids=["lora2", "sora", "lora_xs"])
@pytest.mark.parametrize(
    ("build", "merges"),
    [(int8, False), (int4, False), (nf4, True), (nf4_in_bfloat16, True), (eight_bit, True),
     (hqq, True), (quanto_int8, False), (quanto_int4, False)],
)  # fmt: skip
def test_a_quantised_base(build, merges, config, settings, tmp_path):
    x = torch.randn(8, 64, dtype=build().second.bias.dtype)
    base = build()(x)
    adapter = config(r=4, lora_alpha=128 if merges else 16, **settings)
    adapter.target_modules = {"first", "second"}
    model = get_peft_model(build(), adapter)
    output = model.train()(x)
    assert output.dtype == base.dtype and (output - base).abs().max() > 1e-3
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    layer = model.base_model.model.second
    hidden = torch.tanh(model.base_model.model.first(x))
    wanted = layer.base_layer(hidden).float() + hidden.float() @ layer.get_delta_weight("default").T
    torch.testing.assert_close(output.float(), wanted, rtol=0.02, atol=0.02)
    expected = model.eval()(x)
    model.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(PeftModel.from_pretrained(build(), tmp_path / "ours")(x), expected)
    if config is Lora2Config:
        export_lora(model, tmp_path / "lora")
        lora = PeftModel.from_pretrained(build(), tmp_path / "lora", autocast_adapter_dtype=False)
        torch.testing.assert_close(lora(x).float(), expected.float(), rtol=0.02, atol=0.02)
    if not merges:
        with pytest.raises(ValueError, match=r"first has a weight of type .*export_lora"):
            model.merge_adapter()
        torch.testing.assert_close(model.unload()(x), base, rtol=0.02, atol=0.02)
        return
    with pytest.warns(UserWarning, match="merging rounds the update"):
        merged = model.merge_and_unload()(x)
    update = (expected - base).abs().mean()
    assert (merged - expected).abs().mean() < 0.3 * update


LOADED = {
    "nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "8 bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao int8": lambda: TorchAoConfig(
        __import__("torchao").quantization.Int8WeightOnlyConfig()
    ),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_base_that_transformers_quantised_merges_as_pefts_lora(kind, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=32, num_attention_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")

    def load():
        model = LlamaForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=LOADED[kind](), device_map="cpu",
            dtype=torch.bfloat16,
        )  # fmt: skip
        return prepare_model_for_kbit_training(model)

    ids = torch.randint(0, 32, (2, 7))
    adapter = Lora2Config(r=4, k=2, target_modules="all-linear", init_weights=False)
    model = get_peft_model(load(), adapter)
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert grads and all(grad.abs().sum() > 0 for name, grad in grads.items())
    export_lora(model, tmp_path / "lora")
    before = load()(input_ids=ids).logits
    ours = model.merge_and_unload()(input_ids=ids).logits
    lora = PeftModel.from_pretrained(load(), tmp_path / "lora").merge_and_unload()
    theirs = lora(input_ids=ids).logits
    update = (theirs - before).abs().mean()
    assert (ours - theirs).abs().mean() < 0.1 * update
