from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from lora2 import Lora2Config
from lora2.tuners.lora2 import Lora2Linear
from tests.tuners.lora2.lora2_models import build, logits


def make_layer(kind, dtype=torch.float64, **settings):
    torch.manual_seed(0)
    base = nn.Linear(6, 5) if kind == "linear" else Conv1D(5, 6)
    config = Lora2Config(**{"r": 4, "k": 2, "init_weights": False, **settings})
    return Lora2Linear(base.to(dtype), "default", config)


def dense_update(layer, name="default"):
    """Eq. 4 written out: s (u v) diag(lambda) (U V), (d_in, d_out)."""
    P = layer.lora2_u[name] @ layer.lora2_v[name]
    Q = layer.lora2_U[name] @ layer.lora2_V[name]
    return layer.scaling[name] * P @ torch.diag(layer.lora2_lambda[name]) @ Q


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_is_equation_4(kind):
    layer = make_layer(kind, lora_alpha=6)
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    expected = layer.base_layer(x) + x @ dense_update(layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.scaling["default"] == 1.5
    shapes = [tuple(getattr(layer, name)["default"].shape) for name in layer.adapter_layer_names]
    assert shapes == [(6, 2), (2, 4), (4,), (4, 2), (2, 5)]


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("safe", [False, True])
def test_merged_equals_unmerged(kind, safe):
    layer = make_layer(kind)
    x = torch.randn(3, 6, dtype=torch.float64)
    before, weight = layer(x), layer.base_layer.weight.detach().clone()
    layer.merge(safe_merge=safe)
    assert layer.merged and not torch.equal(layer.base_layer.weight, weight)
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.base_layer(x), before, rtol=1e-12, atol=1e-12)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, weight, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match="nmerged"):
        layer.unmerge()


def test_disabling_a_merged_adapter_unmerges_it():
    layer = make_layer("linear")
    x = torch.randn(3, 6, dtype=torch.float64)
    base = layer.base_layer(x)
    layer.merge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), base, rtol=1e-12, atol=1e-12)
    assert not layer.merged


def test_a_safe_merge_of_nan_leaves_the_weight_alone():
    layer = make_layer("linear")
    weight = layer.base_layer.weight.detach().clone()
    with torch.no_grad():
        layer.lora2_lambda["default"][1] = float("nan")
    with pytest.raises(ValueError):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight) and not layer.merged


def test_two_adapters_add_up_and_merge_one_by_one():
    layer = make_layer("linear")
    layer.update_layer("other", Lora2Config(r=3, k=1, init_weights=False))
    x = torch.randn(3, 6, dtype=torch.float64)
    base = layer.base_layer(x)
    layer.set_adapter(["default", "other"])
    both = base + x @ dense_update(layer) + x @ dense_update(layer, "other")
    torch.testing.assert_close(layer(x), both, rtol=1e-12, atol=1e-12)
    layer.merge(adapter_names=["other"])
    one = base + x @ dense_update(layer, "other")
    torch.testing.assert_close(layer(x), one, rtol=1e-12, atol=1e-12)


def untracked(layer, x, *args, **kwargs):
    """Return what a pass of the whole model without gradients makes of ``layer``."""
    with torch.no_grad():
        for name in layer.active_adapters:
            layer.cache_pair(name, layer.pair(name), with_grad=False)
        try:
            return layer(x, *args, **kwargs)
        finally:
            layer.clear_cache()


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_without_gradients_it_is_the_same_map(bias, adapters):
    layer = make_layer("linear")
    layer.base_layer.bias = nn.Parameter(torch.randn(5, dtype=torch.float64)) if bias else None
    if adapters == 2:
        layer.update_layer("other", Lora2Config(r=3, k=1, init_weights=False))
        layer.set_adapter(["default", "other"])
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    for name in layer.active_adapters:
        assert (x @ dense_update(layer, name)).abs().max() > 1e-3
    tracked = layer(x).detach()
    for one, expected in ((x, tracked), (x[:0], tracked[:0]), (x[0, 0], tracked[0, 0])):
        torch.testing.assert_close(untracked(layer, one), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # called alone
        torch.testing.assert_close(layer(x), tracked, rtol=1e-12, atol=1e-12)
    layer.enable_adapters(False)
    torch.testing.assert_close(untracked(layer, x), layer.base_layer(x).detach())


def test_without_gradients_a_layer_that_somebody_looks_at_is_called():
    layer = make_layer("linear")
    x = torch.randn(3, 2, 6, dtype=torch.float64)
    expected = layer(x).detach()
    with pytest.raises(TypeError):
        untracked(layer, x, scale=2)
    seen = []
    handle = layer.base_layer.register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(untracked(layer, x), expected)
    assert seen == [True]
    handle.remove()
    layer.base_layer.forward = lambda x: x.new_zeros(*x.shape[:-1], 5)
    torch.testing.assert_close(untracked(layer, x), x @ dense_update(layer).detach())


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("base", [torch.float32, torch.float64])
def test_without_gradients_dtypes_may_differ(base, given):
    layer = make_layer("linear", dtype=base)
    for name in layer.adapter_layer_names:
        factor = getattr(layer, name)
        factor["default"] = nn.Parameter(factor["default"].double())
    x = torch.randn(3, 6, dtype=given)
    if given != base:
        with pytest.raises(RuntimeError, match="dtype"):  # as without an adapter
            untracked(layer, x)
        return
    found = untracked(layer, x)
    assert found.dtype == base
    torch.testing.assert_close(found, layer(x).detach())


def test_without_gradients_dropout_still_acts_in_training():
    layer = make_layer("linear", lora_dropout=0.5).train()
    x = torch.randn(64, 6, dtype=torch.float64)
    torch.manual_seed(1)
    expected = layer(x).detach()
    torch.manual_seed(1)
    torch.testing.assert_close(untracked(layer, x), expected)


class Guarded(torch.Tensor):
    """A weight that only its layer can multiply with, as a quantised one."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.addmm_, torch.Tensor.T.__get__):
            raise NotImplementedError(func)
        if func is not nn.functional.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def test_a_weight_of_another_class_is_left_to_its_layer():
    layer = make_layer("linear")
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x).detach()
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().as_subclass(Guarded))
    torch.testing.assert_close(untracked(layer, x), expected)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_weight_that_is_no_parameter_is_left_to_its_layer(name):
    layer = make_layer("linear")
    layer.base_layer.bias = nn.Parameter(torch.randn(5, dtype=torch.float64))
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x).detach()
    value = getattr(layer.base_layer, name).detach()
    delattr(layer.base_layer, name)
    setattr(layer.base_layer, name, value)
    torch.testing.assert_close(untracked(layer, x), expected)


def test_a_parametrised_factor_is_found():
    model = nn.Sequential(nn.Linear(6, 5))
    config = Lora2Config(r=4, k=2, target_modules=["0"], init_weights=False)
    model = get_peft_model(model, config)
    layer = model.base_model.model[0]
    x = torch.randn(3, 6)
    expected = model(x)
    parametrize.register_parametrization(layer.lora2_u, "default", nn.Identity())
    torch.testing.assert_close(model(x), expected)
    assert model.base_model.regularization_loss() > 0


def test_the_start_is_the_identity_at_the_stated_spread():
    torch.manual_seed(0)
    layer = Lora2Linear(nn.Linear(4000, 3000), "default", Lora2Config(r=8, k=2))
    x = torch.randn(2, 4000)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert (layer.lora2_lambda["default"] == 0).all() and layer.lora2_mask["default"].all()
    for factor in (layer.lora2_u, layer.lora2_V):
        assert 0.019 < factor["default"].std() < 0.021


def test_dropout_acts_on_the_adapter_input_in_training_only():
    layer = make_layer("linear", lora_dropout=0.5)
    x = torch.randn(64, 6, dtype=torch.float64)
    layer.train()
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.5)
    torch.manual_seed(1)
    expected = layer.base_layer(x) + dropped @ dense_update(layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.eval()
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ dense_update(layer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_adapters_on_a_half_precision_base_keep_its_dtype(dtype):
    layer = make_layer("linear", dtype=dtype)
    for name in layer.adapter_layer_names:
        factor = getattr(layer, name)
        factor["default"] = nn.Parameter(factor["default"].float())
    x = torch.randn(3, 6, dtype=dtype)
    assert layer(x).dtype == dtype and layer.get_delta_weight("default").dtype == torch.float32
    merged = (layer.base_layer.weight.float() + dense_update(layer).T).to(dtype)
    layer.merge()
    assert torch.equal(layer.base_layer.weight, merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_safe_merge_rounds_once_as_merge_does(dtype):
    torch.manual_seed(0)
    config = Lora2Config(r=4, k=2, init_weights=False)
    one, other = (Lora2Linear(nn.Linear(64, 64, dtype=dtype), "default", config) for _ in range(2))
    other.load_state_dict(one.state_dict())
    weight = one.base_layer.weight.detach().clone()
    for layer in (one, other):
        for name in layer.adapter_layer_names:
            getattr(layer, name)["default"].data = getattr(layer, name)["default"].data.float()
    one.merge(safe_merge=False)
    other.merge(safe_merge=True)
    assert not torch.equal(one.base_layer.weight, weight)
    assert torch.equal(one.base_layer.weight, other.base_layer.weight)


def test_all_five_factors_get_gradients_and_the_base_none():
    model = nn.Sequential(nn.Linear(6, 5))
    model = get_peft_model(model, Lora2Config(r=4, k=2, target_modules=["0"], init_weights=False))
    model(torch.randn(3, 6)).square().sum().backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[-2] for name in graded} == {
        "lora2_u",
        "lora2_v",
        "lora2_lambda",
        "lora2_U",
        "lora2_V",
    }


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 2), nn.Embedding(3, 4)])
def test_an_unsupported_module_is_refused_by_name_with_the_way_out(module):
    refusal = rf"0 is a {type(module).__name__};.*PEFT's LoRA \(LoraConfig\)"
    with pytest.raises(TypeError, match=refusal):
        get_peft_model(nn.Sequential(module), Lora2Config(target_modules=["0"]))


def test_with_identity_inner_factors_it_is_adalora():
    """k = r and v = U = I: x (A^T) diag(E) (B^T), at AdaLoRA's scale alpha / (r + 1e-5)."""
    r, targets = 4, ["query", "value"]
    ada = get_peft_model(
        build("bert", dtype=torch.float64),
        AdaLoraConfig(init_r=r, target_r=2, lora_alpha=16, target_modules=targets, total_step=10),
    )
    ours = get_peft_model(
        build("bert", dtype=torch.float64),
        Lora2Config(r=r, k=r, lora_alpha=16 * r / (r + 1e-5), target_modules=targets),
    )
    theirs = dict(ada.named_modules())
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, Lora2Linear):
                other = theirs[name]
                for factor in (other.lora_A, other.lora_B, other.lora_E):
                    factor["default"].normal_()
                layer.lora2_u["default"].copy_(other.lora_A["default"].T)
                layer.lora2_V["default"].copy_(other.lora_B["default"].T)
                layer.lora2_lambda["default"].copy_(other.lora_E["default"].flatten())
                layer.lora2_v["default"].copy_(torch.eye(r))
                layer.lora2_U["default"].copy_(torch.eye(r))
    torch.testing.assert_close(logits(ours), logits(ada), rtol=1e-11, atol=1e-11)
    assert (logits(ours) - logits(build("bert", dtype=torch.float64))).abs().max() > 1e-3
    assert isinstance(ours, PeftModel)
