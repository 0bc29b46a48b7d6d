"""A and B of LoRA-XS against the full singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora2.tuners.lora_xs import LoraXsConfig, LoraXsLinear, truncated_svd


def weight(d_in: int = 12, d_out: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (7, 7)])
@pytest.mark.parametrize("r", [1, 3, 7])
def test_best_approximation_with_sigma_on_the_input_side(shape, r):
    w = weight(*shape)
    a, b = truncated_svd(w, r)
    u, sigma, vh = torch.linalg.svd(w.double(), full_matrices=True)
    best = u[:, :r] @ torch.diag(sigma[:r]) @ vh[:r]
    torch.testing.assert_close(a @ b, best.float(), atol=1e-5, rtol=1e-5)
    # Eckart-Young: the error is the energy of the dropped singular values
    error = torch.linalg.matrix_norm(w - a @ b)
    torch.testing.assert_close(
        error.double(), sigma[r:].square().sum().sqrt(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        a.T @ a, torch.diag(sigma[:r].square()).float(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(b @ b.T, torch.eye(r), atol=1e-5, rtol=1e-5)
    assert a.is_contiguous()
    assert b.is_contiguous()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4),
)
def test_the_sign_does_not_depend_on_the_library(seed, signs):
    w = weight(seed=seed)
    a, b = truncated_svd(w, 4)
    true_svd = torch.linalg.svd

    def flipped(matrix, full_matrices):
        u, sigma, vh = true_svd(matrix, full_matrices=full_matrices)
        flip = torch.tensor(signs + [1.0] * (len(sigma) - 4))
        return u * flip, sigma, vh * flip[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", flipped)
        again = truncated_svd(w, 4)
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)


def test_rank_above_the_smaller_side():
    net = nn.Sequential(nn.Linear(12, 9))
    with pytest.raises(ValueError, match="0 is 12 x 9 and has no 10 singular values; lower r"):
        get_peft_model(net, LoraXsConfig(r=10, target_modules=["0"]))


@pytest.mark.parametrize("base", [nn.Linear(12, 9), Conv1D(9, 12)])
def test_the_layer_s_basis_is_that_of_its_weight(base):
    nn.init.normal_(base.weight)
    layer = LoraXsLinear(base, "default", LoraXsConfig(r=9), "here")
    w = base.weight if isinstance(base, Conv1D) else base.weight.T  # (d_in, d_out)
    product = layer.loraxs_A["default"] @ layer.loraxs_B["default"]
    torch.testing.assert_close(product, w.detach(), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        layer.loraxs_R["default"].copy_(torch.eye(9) / layer.scaling["default"])
    # with R = I / s and full rank, the update is the weight itself
    torch.testing.assert_close(layer.get_delta_weight("default"), base.weight.detach())


def test_a_merged_adapter_is_not_in_the_basis_of_the_next():
    net = nn.Sequential(nn.Linear(12, 9))
    model = get_peft_model(net, LoraXsConfig(r=4, target_modules=["0"], init_std=1.0))
    model.merge_adapter()
    model.add_adapter("other", LoraXsConfig(r=4, target_modules=["0"]))
    basis = model.base_model.model[0].loraxs_A
    torch.testing.assert_close(basis["other"], basis["default"], atol=1e-5, rtol=1e-4)


class Quantised(nn.Linear):
    """Stands for bitsandbytes' layers, whose weight is uint8; and its backend."""

    supports_merge, backend_name = True, "ours"

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.weight = nn.Parameter(torch.arange(64, dtype=torch.uint8).view(8, 8), False)

    def get_base_weight(self, layer):
        return layer.weight.float()


def test_an_adapter_on_a_quantised_base_is_loaded_with_low_cpu_mem_usage(tmp_path, monkeypatch):
    backend = Quantised()
    monkeypatch.setattr("peft.utils.resolve_quantization_backend", lambda *_, **__: backend)
    config = LoraXsConfig(r=2, target_modules=["0"], init_std=1.0)
    model = get_peft_model(nn.Sequential(Quantised()), config)
    model.save_pretrained(tmp_path)
    base = nn.Sequential(Quantised())
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=True)
    ours, wanted = (one.base_model.model[0].get_delta_weight("default") for one in (loaded, model))
    assert torch.equal(ours, wanted)


def test_a_meta_model_can_be_counted():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(1024, 4096))
    model = get_peft_model(net, LoraXsConfig(r=16, target_modules=["0"]), low_cpu_mem_usage=True)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 256
