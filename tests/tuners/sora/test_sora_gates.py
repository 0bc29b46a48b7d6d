"""The proximal step and the gates' schedules against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn
from transformers import TrainingArguments, get_linear_schedule_with_warmup

from lora2.tuners.sora import SoraConfig
from lora2.tuners.sora.model import GateOptimizer, lr_at, proximal_step, xi_at

gates = st.floats(-3, 3, allow_nan=False, width=32)
thresholds = st.floats(0.015625, 1, width=32)


@given(gate=gates, xi=thresholds)
def test_soft_is_the_minimiser(gate, xi):
    def objective(z: float) -> float:
        return 0.5 * (z - gate) ** 2 + xi * abs(z)

    found = minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x
    ours = float(proximal_step(torch.tensor([gate], dtype=torch.float64), xi))
    assert ours == pytest.approx(found, abs=1e-5)
    # brute force: nothing around beats it
    assert all(objective(ours) <= objective(ours + step) for step in (-1e-3, 1e-3, -0.1, 0.1))


@given(gate=gates, xi=thresholds)
def test_published_has_twice_the_dead_zone(gate, xi):
    ours = float(proximal_step(torch.tensor(gate, dtype=torch.float64), xi, "published"))
    # the published order, one number at a time
    wanted = gate - xi if gate > xi else gate + xi if gate < -xi else gate
    wanted = 0.0 if abs(wanted) < xi else wanted
    assert ours == wanted


def test_the_two_thresholds_by_hand():
    gate = torch.tensor([0.5, -0.5, 0.15, -0.15, 0.05, 0.0])
    soft = proximal_step(gate, 0.1)
    torch.testing.assert_close(soft, torch.tensor([0.4, -0.4, 0.05, -0.05, 0.0, 0.0]))
    published = proximal_step(gate, 0.1, "published")
    torch.testing.assert_close(published, torch.tensor([0.4, -0.4, 0.0, 0.0, 0.0, 0.0]))
    assert torch.equal(proximal_step(gate, 0.0), gate)
    assert torch.equal(proximal_step(gate, 0.0, "published"), gate)


def test_xi_rises_in_equal_stages():
    config = SoraConfig(xi=0.0, xi_max=6e-4, xi_stages=7)
    values = [xi_at(config, step, 70) for step in range(1, 71)]
    wanted = [stage * 1e-4 for stage in range(7) for _ in range(10)]
    assert values == pytest.approx(wanted)
    assert {xi_at(SoraConfig(xi=2e-4), step, 9) for step in range(1, 10)} == {2e-4}
    uneven = [xi_at(SoraConfig(xi=0.0, xi_max=1.0, xi_stages=3), step, 4) for step in range(1, 5)]
    assert uneven == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("warmup", [0, 0.06, 0.5, 1, 15])
def test_the_rate_is_that_of_transformers_trainer(warmup, tmp_path):
    total = 49  # 0.06 of it is no whole number
    config = SoraConfig(gate_lr=0.3, gate_warmup_steps=warmup)
    args = TrainingArguments(str(tmp_path), warmup_steps=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = get_linear_schedule_with_warmup(optimizer, args.get_warmup_steps(total), total)
    for step in range(1, total + 1):
        assert lr_at(config, step, total) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert lr_at(config, total + 1, total) == 0.0


@pytest.mark.parametrize("threshold", ["soft", "published"])
def test_a_step_is_adamw_then_the_proximal_step(threshold):
    config = SoraConfig(
        xi=0.05, gate_lr=0.1, gate_warmup_steps=0, gate_weight_decay=0.1, threshold=threshold
    )
    gate = {name: nn.Parameter(torch.randn(4)) for name in "ab"}
    optimizer = GateOptimizer(gate, config, total_step=4)
    reference = {name: nn.Parameter(g.detach().clone()) for name, g in gate.items()}
    adamw = torch.optim.AdamW(reference.values(), lr=0.1, eps=1e-6, weight_decay=0.1)
    for step in range(1, 5):
        adamw.param_groups[0]["lr"] = 0.1 * (5 - step) / 4
        for name in "ab":
            gate[name].grad = torch.randn(4)
            reference[name].grad = gate[name].grad.clone()
        optimizer.step(step)
        adamw.step()
        with torch.no_grad():
            for g in reference.values():
                g.copy_(proximal_step(g, 0.05, threshold))
        for name in "ab":
            torch.testing.assert_close(gate[name], reference[name])
            assert gate[name].grad is None


def test_state_goes_round_and_refuses_other_gates():
    config = SoraConfig(gate_warmup_steps=0)
    gate = {"a": nn.Parameter(torch.randn(4))}
    optimizer = GateOptimizer(gate, config, 9)
    empty = optimizer.state()
    assert empty["count"] == 0
    optimizer.load_state(empty)
    gate["a"].grad = torch.randn(4)
    optimizer.step(1)
    saved = optimizer.state()
    assert set(saved) == {"count", "gate", "exp_avg", "exp_avg_sq"}
    fresh = GateOptimizer({"a": nn.Parameter(gate["a"].detach().clone())}, config, 9)
    fresh.load_state(saved)
    grad = torch.randn(4)
    for one in (optimizer, fresh):
        one.gates["a"].grad = grad.clone()
        one.step(2)
    assert torch.equal(fresh.gates["a"], gate["a"])
    assert fresh.driven == 2
    other = GateOptimizer({"b": nn.Parameter(torch.randn(4))}, config, 9)
    for wrong in ({}, {"count": torch.tensor(3.0)}, {**saved, "gate": torch.ones(2, 4)}):
        with pytest.raises(ValueError, match="resume with the same target_modules"):
            other.load_state(wrong)
    with pytest.raises(ValueError, match="another run or step"):
        other.load_state(saved)


def test_steps_with_infinite_gradients_change_neither_the_gates_nor_the_next_step():
    """As fp16's loss scaler skips one."""
    start = torch.randn(4)
    optimizer, other = (
        GateOptimizer({"a": nn.Parameter(start.clone())}, SoraConfig(xi=0.1), 9) for _ in range(2)
    )
    gate, before = optimizer.gates["a"], start
    for bad in (torch.inf, torch.nan):
        gate.grad = torch.tensor([1.0, bad, 2.0, 3.0])
        optimizer.step(3)
        assert torch.equal(gate, before) and gate.grad is None
    for one in (optimizer, other):
        one.gates["a"].grad = torch.tensor([1.0, -1.0, 2.0, 3.0])
        one.step(4)
    assert torch.equal(gate, other.gates["a"]) and not torch.equal(gate, before)


def test_the_term_that_no_backward_pass_brought_is_added():
    config = SoraConfig(sparse_lambda=3.0, gate_warmup_steps=0)
    gate = {name: nn.Parameter(torch.randn(4)) for name in "ab"}
    twin = {name: nn.Parameter(one.detach().clone()) for name, one in gate.items()}
    (3.0 * torch.cat([*gate.values()]).abs().mean()).backward()
    for one in twin.values():
        one.grad = torch.zeros(4)
    GateOptimizer(gate, config, 5).step(1)
    GateOptimizer(twin, config, 5).step(1, with_term=True)
    for name in "ab":
        assert torch.equal(gate[name], twin[name])


def test_settings():
    with pytest.raises(ValueError, match="SoraConfig: ") as error:
        SoraConfig(
            sparse_lambda=-1.0,
            xi=-1.0,
            threshold="hard",
            gate_lr=0.0,
            gate_warmup_steps=-1.0,
            gate_weight_decay=-1.0,
            xi_stages=0,
        )
    for name in ("sparse_lambda", "xi", "threshold", "gate_lr", "gate_warmup_steps", "xi_stages"):
        assert f"{name}=" in str(error.value)
    for bad in ({"xi_max": 1.0}, {"xi_stages": 3}):
        with pytest.raises(ValueError, match=r"xi_max=.*xi_stages"):
            SoraConfig(**bad)
    with pytest.raises(ValueError, match=r"xi_max=1.0 \(allowed: None, or a number >= xi=2.0"):
        SoraConfig(xi=2.0, xi_max=1.0, xi_stages=2)
