"""The orthogonal start: what holds of its factors, and how large the step is that follows it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora2 import Lora2Config, create_lora2_optimizer
from lora2.tuners.lora2.optimizer import first_step_ratio
from lora2.tuners.lora2.stacks import FACTOR_NAMES
from tests.tuners.lora2.lora2_models import adapt, build, logits, train

TARGETS = list("01234567")


def eight(d_in: int, d_out: int, seed: int = 0, **settings) -> list[nn.Module]:
    """Eight adapted matrices of one shape."""
    torch.manual_seed(seed)
    config = Lora2Config(target_modules=TARGETS, init_weights="orthogonal", **settings)
    linear = [nn.Linear(d_in, d_out, bias=False) for _ in TARGETS]
    return list(get_peft_model(nn.Sequential(*linear), config).base_model.model)


def factors(layer: nn.Module) -> list[torch.Tensor]:
    """u, v, lambda, U, V"""
    return [getattr(layer, name)["default"].detach() for name in FACTOR_NAMES]


@pytest.mark.parametrize(("d_in", "d_out"), [(16, 10), (10, 16)])
@pytest.mark.parametrize(
    ("k", "r"), [(1, 8), (1, 1), (2, 8), (3, 8), (7, 8), (8, 8), (4, 7), (7, 7), (2, 2), (9, 8)]
)
def test_the_factors_are_orthonormal_and_every_singular_value_starts_alike(d_in, d_out, k, r):
    for layer in eight(d_in, d_out, k=k, r=r):
        u, v, lam, U, V = factors(layer)
        eye = torch.eye(k)
        inner = (v @ v.T, U.T @ U) if k <= r else ()
        for gram in (u.T @ u, V @ V.T, *inner):
            torch.testing.assert_close(gram, eye, rtol=0, atol=2e-6)
        if k >= r:
            torch.testing.assert_close(v.T @ v, torch.eye(r), rtol=0, atol=2e-6)
            torch.testing.assert_close(U @ U.T, torch.eye(r), rtol=0, atol=2e-6)
        norm = torch.full((r,), (min(k, r) / r) ** 0.5)
        torch.testing.assert_close(v.norm(dim=0), norm)
        torch.testing.assert_close(U.norm(dim=1), norm)
        assert torch.equal(lam, torch.zeros(r))


def test_k1_is_plus_or_minus_one_over_the_root_of_r():
    signs = set()
    for layer in eight(16, 16, k=1, r=8):
        _, v, _, U, _ = factors(layer)
        for inner in (v[0], U[:, 0]):
            torch.testing.assert_close(inner.abs(), torch.full((8,), 8**-0.5))
            signs.update(inner.sign().tolist())
    assert signs == {-1.0, 1.0}


def test_a_seed_gives_the_same_bits_and_every_matrix_its_own():
    drawn = [torch.stack([factors(x)[at] for x in eight(16, 10, k=3, r=8)]) for at in range(5)]
    again = [torch.stack([factors(x)[at] for x in eight(16, 10, k=3, r=8)]) for at in range(5)]
    other = [torch.stack([factors(x)[at] for x in eight(16, 10, 1, k=3, r=8)]) for at in range(5)]
    for at in (0, 1, 3, 4):  # not lambda, which is zero
        assert torch.equal(drawn[at], again[at])
        assert not torch.isclose(drawn[at], other[at]).all(1).any()
        assert not torch.isclose(drawn[at][0], drawn[at][1:]).all(1).any()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_no_output_changes_and_the_penalty_is_zero(k):
    model = adapt("roberta", k=k, init_weights="orthogonal", orth_reg_weight=1.0)
    assert torch.equal(logits(model), logits(build("roberta")))
    for orthogonality in ("uv", "UV", "uv+UV"):
        model.peft_config["default"].orthogonality = orthogonality
        assert model.base_model.regularization_loss() < 1e-5
    model.peft_config["default"].orthogonality = "PQ"
    floor = (4 - k) ** 0.5  # r - k: the rank that P and Q lack
    assert float(model.base_model.regularization_loss()) == pytest.approx(floor, abs=1e-5)


def test_trained_it_prunes_saves_loads_and_merges(tmp_path):
    model = adapt("roberta", init_weights="orthogonal", target_r=2, tfinal=1, total_step=4)
    train(model, create_lora2_optimizer(model, torch.optim.AdamW, lr=2e-2), 1, 4)
    model.base_model.finish_training()
    outputs = logits(model)
    assert (outputs - logits(build("roberta"))).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(build("roberta"), tmp_path, low_cpu_mem_usage=low)
        assert loaded.peft_config["default"].init_weights == "orthogonal"
        assert torch.equal(logits(loaded), outputs)
        assert loaded.base_model.kept_ranks() == model.base_model.kept_ranks()
    torch.testing.assert_close(logits(model.merge_and_unload()), outputs, rtol=1e-4, atol=1e-6)


def test_of_two_adapters_each_has_its_own_start():
    model = adapt("roberta", init_weights="orthogonal", task_type=None)
    for name, start in (("second", "orthogonal"), ("published", True)):
        targets = ["query", "value"]
        model.add_adapter(name, Lora2Config(r=4, k=2, target_modules=targets, init_weights=start))
    plain = logits(build("roberta"))
    u = model.base_model.model.roberta.encoder.layer[0].attention.self.query.lora2_u
    assert not torch.isclose(u["default"], u["second"]).any()
    grams = {name: u[name].detach().T @ u[name].detach() for name in u}
    assert {n for n, gram in grams.items() if torch.allclose(gram, torch.eye(2), atol=1e-5)} == {
        "default", "second",
    }  # fmt: skip
    first = u["default"].detach().clone()
    model.set_adapter("second")
    assert torch.equal(logits(model), plain)
    train(model, create_lora2_optimizer(model, torch.optim.AdamW, lr=2e-2), 1, 2)
    assert not torch.equal(logits(model), plain)
    model.set_adapter("default")
    assert torch.equal(logits(model), plain) and torch.equal(u["default"], first)


def test_a_model_without_memory_for_its_weights_can_have_it():
    with torch.device("meta"):
        for layer in eight(16, 10, k=3, r=8):
            assert {factor.device.type for factor in factors(layer)} == {"meta"}


def first_updates(layers: list[nn.Module], optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """||dW||_F of every matrix after one step on the loss <G, dW>, G the same for all callers."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers:
        G = torch.randn(layer.base_layer.weight.shape, generator=generator)
        (G * layer.get_delta_weight("default")).sum().backward()
    optimizer.step()
    return torch.stack([layer.get_delta_weight("default").detach().norm() for layer in layers])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("d", [64, 384, 768])
def test_with_a_rate_for_lambda_the_first_step_is_as_large_as_loras(d, k):
    adam = torch.optim.Adam
    layers = eight(d, d, k=k, r=8, lora_alpha=16)
    model = nn.ModuleList(layers)
    ours = first_updates(layers, create_lora2_optimizer(model, adam, lr=1e-3))
    config = LoraConfig(r=k, lora_alpha=2 * k, target_modules=TARGETS)
    plain = nn.Sequential(*[layer.base_layer for layer in layers])
    lora = get_peft_model(plain, config).base_model.model
    trained = [p for p in lora.parameters() if p.requires_grad]
    ratio = float(ours.mean() / first_updates(list(lora), adam(trained, lr=1e-3)).mean())
    assert 1 / 1.5 < ratio < 1.5


@pytest.mark.parametrize(
    ("k", "r", "more"), [(1, 8, 1.0), (8, 8, 1.0), (16, 8, 1.0), (2, 8, 1.48311), (4, 8, 1.35398)]
)
def test_the_ratio_is_that_of_loras_output_width_and_more_between_k_1_and_r(k, r, more):
    assert first_step_ratio(768, k, r) == pytest.approx(more * 16, rel=1e-4)
