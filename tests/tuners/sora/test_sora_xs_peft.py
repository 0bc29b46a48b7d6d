"""What PEFT promises of every method, for SoRA and LoRA-XS alike."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_config, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from lora2.tuners.lora_xs import LoraXsConfig, LoraXsLinear
from lora2.tuners.sora import SoraConfig, SoraLinear

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 2,
    "initializer_range": 0.2,  # so that an update of attention reaches the logits
}
TARGETS = ["query", "query_proj", "value", "value_proj", "attention.output.dense", "output.dense"]
LAYERS = {"sora": SoraLinear, "lora_xs": LoraXsLinear}
PREFIX = {"sora": "sora_", "lora_xs": "loraxs_"}
METHODS = list(LAYERS)


def classifier(kind: str = "roberta", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    if kind == "deberta":
        config = DebertaV2Config(
            **SMALL, relative_attention=True, pos_att_type=["c2p", "p2c"], pooler_hidden_size=32
        )
        return DebertaV2ForSequenceClassification(config).eval().to(dtype)
    if kind == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**SMALL)).eval().to(dtype)
    return BertForSequenceClassification(BertConfig(**SMALL)).eval().to(dtype)


def settings(method: str, **changes):
    """A config whose new adapter already changes the output."""
    kwargs = {"r": 4, "target_modules": TARGETS, "task_type": "SEQ_CLS"} | changes
    if method == "sora":
        return SoraConfig(**({"init_weights": False} | kwargs))
    return LoraXsConfig(**({"init_std": 0.3} | kwargs))


def adapted(method: str, kind: str = "roberta", dtype=torch.float32, **changes) -> PeftModel:
    model = get_peft_model(classifier(kind, dtype), settings(method, **changes))
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens()).logits


def updates(layer: nn.Module, method: str, name: str = "default") -> torch.Tensor:
    """The update (d_in, d_out), written out from the equations."""
    if method == "sora":
        a, b, g = layer.sora_A[name], layer.sora_B[name], layer.sora_gate[name]
        return (16 / 4) * (b @ torch.diag(g) @ a).T
    return (16 / 4) * layer.loraxs_A[name] @ layer.loraxs_R[name] @ layer.loraxs_B[name]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [nn.Linear(6, 9), nn.Linear(9, 6, bias=False), Conv1D(9, 6)])
def test_the_layer_is_its_equation(method, base):
    layer = LAYERS[method](copy.deepcopy(base), "default", settings(method), "here")
    x = torch.randn(2, 5, base.weight.shape[0 if isinstance(base, Conv1D) else 1])
    wanted = base(x) + x @ updates(layer, method)
    torch.testing.assert_close(layer(x), wanted)
    assert not torch.allclose(layer(x), base(x), atol=1e-3)
    layer.merge(safe_merge=True)
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, base.weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_in_float64_keeps_float64(method):
    base = nn.Linear(6, 9, dtype=torch.float64)
    layer = LAYERS[method](copy.deepcopy(base), "default", settings(method), "here").double()
    wanted = base.weight + updates(layer, method).T
    layer.merge()
    torch.testing.assert_close(layer.base_layer.weight.data, wanted, rtol=1e-14, atol=1e-14)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, base.weight, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_for_each_row_is_refused(method):
    rows = ["default", "__base__", "default"]
    with pytest.raises(ValueError, match=r"adapter_names=.*set_adapter"):
        adapted(method)(input_ids=tokens(), adapter_names=rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["deberta", "roberta", "bert"])
@pytest.mark.parametrize("heads", [None, ["classifier", "pooler"]])
def test_merge_and_unload_of_a_classifier(method, kind, heads):
    model = adapted(method, kind, modules_to_save=heads)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(classifier(kind)), atol=1e-3)
    merged = model.merge_and_unload()
    assert type(merged) is type(classifier(kind))
    assert not any(isinstance(module, LAYERS[method]) for module in merged.modules())
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=1e-4)
    assert set(merged.state_dict()) == set(classifier(kind).state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_merge_unmerge_and_disable(method):
    model, plain = adapted(method), logits(classifier())
    wanted = logits(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-4)
    with pytest.warns(UserWarning, match="nothing is merged"):
        model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_safe_merge_refuses_a_broken_adapter(method):
    model = adapted(method)
    name, layer = next(
        (name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")
    )
    with torch.no_grad():
        (layer.sora_A if method == "sora" else layer.loraxs_R)["default"][0, 0] = torch.nan
    before = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before), name
    assert not layer.merged


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["sora", "lora_xs"])
def test_save_and_load(method, low_cpu_mem_usage, dtype, tmp_path):
    model = adapted(method, dtype=dtype, modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].dense.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        classifier(dtype=dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    loaded.eval()
    assert loaded.peft_config["default"].peft_type == PeftType[method.upper()]
    assert torch.equal(logits(loaded), logits(model))
    ours = {k: v for k, v in model.state_dict().items() if PREFIX[method] in k}
    theirs = {k: v for k, v in loaded.state_dict().items() if PREFIX[method] in k}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])


@pytest.mark.parametrize("method", METHODS)
def test_several_adapters(method, tmp_path):
    # without task_type: two trained heads cannot be active at once
    model = adapted(method, task_type=None)
    first = logits(model)
    other = settings(method, r=2, target_modules=["query", "key"], task_type=None)
    model.add_adapter("second", other)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    second = logits(model)
    assert not torch.allclose(first, second, atol=1e-3)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("second" in name for name in trained)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not torch.allclose(both, first, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.save_pretrained(tmp_path)
    model.delete_adapter("second")
    torch.testing.assert_close(logits(model), first, atol=1e-5, rtol=1e-4)
    assert not any("second" in name for name in model.state_dict())
    model.load_adapter(tmp_path / "second", "again")
    model.set_adapter("again")
    torch.testing.assert_close(logits(model), second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_in_training_only(method):
    model = adapted(method, lora_dropout=0.5)
    assert torch.equal(logits(model), logits(adapted(method)))
    for module in model.modules():
        if isinstance(module, LAYERS[method]):
            module.train()
    assert not torch.allclose(logits(model), logits(model), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_base(method, autocast):
    model = get_peft_model(
        classifier(dtype=torch.bfloat16), settings(method), autocast_adapter_dtype=autocast
    ).eval()
    dtypes = {t.dtype for name, t in model.state_dict().items() if PREFIX[method] in name}
    assert dtypes == {torch.float32 if autocast else torch.bfloat16}
    out = logits(model)
    assert out.dtype == torch.bfloat16
    model.merge_adapter()
    torch.testing.assert_close(logits(model), out, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_conv1d_model(method):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=40, initializer_range=0.2
    )
    base = GPT2LMHeadModel(config).eval()
    plain = logits(base)
    config = settings(method, target_modules=None, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    wanted = logits(model)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_intended_parameters_move(method):
    model = adapted(method, modules_to_save=["classifier"]).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    basis = {name: b.clone() for name, b in model.named_buffers()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    wanted = {n for n in before if PREFIX[method] in n or "modules_to_save.default" in n}
    assert moved == wanted
    assert all(torch.equal(b, basis[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method):
    def state(seed: int) -> dict[str, torch.Tensor]:
        base = classifier()
        torch.manual_seed(seed)
        model = get_peft_model(base, settings(method))
        drawn = ("_gate.default", "_R.default")
        return {k: v for k, v in model.state_dict().items() if k.endswith(drawn)}

    one, same, other = state(1), state(1), state(2)
    assert one
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not any(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("method", METHODS)
def test_registration(method, tmp_path):
    kind = PeftType[method.upper()]
    assert isinstance(kind, PeftType)
    config = settings(method)
    assert config.peft_type is kind
    module = importlib.import_module(f"lora2.tuners.{method}")
    # a second registration is harmless
    module.register(method, type(config), getattr(module, type(config).__name__[:-6] + "Model"))
    again = get_peft_config({"peft_type": method.upper(), "r": 3})
    assert type(again) is type(config)
    assert again.r == 3
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("method", METHODS)
def test_only_float_linear_layers(method):
    with pytest.raises(TypeError, match=r"word_embeddings is a Embedding; only torch.nn.Linear"):
        adapted(method, target_modules=["word_embeddings"])
    quantized = nn.Linear(4, 4)
    quantized.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    config = settings(method, target_modules=["0"], task_type=None)
    with pytest.raises(TypeError, match="floating-point"):
        get_peft_model(nn.Sequential(quantized), config)


@pytest.mark.parametrize("method", METHODS)
def test_every_impossible_setting_is_named_at_once(method):
    with pytest.raises(ValueError, match=r"lora_alpha=0 .*lora_dropout=1.0") as error:
        settings(method, r=0, lora_alpha=0, lora_dropout=1.0, layers_pattern="layer")
    assert "r=0 (allowed: an integer >= 1)" in str(error.value)
    assert "layers_pattern='layer' (allowed: only beside layers_to_transform" in str(error.value)
    for bad in ({"r": True}, {"r": 2.0}, {"lora_alpha": "16"}, {"lora_alpha": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*allowed"):
            settings(method, **bad)
