"""Quantised bases on a CPU: forward, backward, save, load, export; merging is refused."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

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


def int8() -> Net:
    from torchao.quantization import Int8WeightOnlyConfig

    return torchao_net(Int8WeightOnlyConfig())


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
@pytest.mark.parametrize("build", [int8, nf4, nf4_in_bfloat16, eight_bit])
def test_a_quantised_base(build, config, settings, tmp_path):
    x = torch.randn(8, 64, dtype=build().second.bias.dtype)
    base = build()(x)
    adapter = config(r=4, target_modules=["first", "second"], **settings)
    model = get_peft_model(build(), adapter)
    assert model.base_model.model.first.quantization_backend is not None
    output = model.train()(x)
    assert output.dtype == base.dtype and (output - base).abs().max() > 1e-3
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    layer = model.base_model.model.second
    hidden = torch.tanh(model.base_model.model.first(x))
    wanted = layer.base_layer(hidden).float() + hidden.float() @ layer.get_delta_weight("default").T
    torch.testing.assert_close(output.float(), wanted, rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="first has a quantised weight"):
        model.merge_adapter()
    expected = model.eval()(x)
    model.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(PeftModel.from_pretrained(build(), tmp_path / "ours")(x), expected)
    if config is Lora2Config:
        export_lora(model, tmp_path / "lora")
        lora = PeftModel.from_pretrained(build(), tmp_path / "lora", autocast_adapter_dtype=False)
        torch.testing.assert_close(lora(x).float(), expected.float(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(model.unload()(x), base, rtol=0.02, atol=0.02)
