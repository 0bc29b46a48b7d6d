from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora2.tuners.lora2.allocator import Allocator
from lora2.tuners.lora2.budget import budget, top_mask
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.factors import Factors

SHAPES = [(6, 5), (5, 9), (6, 5), (9, 6)]  # (d_in, d_out)


@st.composite
def schedules(draw):
    tinit, tfinal = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    total_step = tinit + tfinal + draw(st.integers(1, 80))
    target_total = draw(st.integers(1, 400))
    init_total = target_total + draw(st.integers(0, 400))
    return {
        "init_total": init_total,
        "target_total": target_total,
        "total_step": total_step,
        "tinit": tinit,
        "tfinal": tfinal,
    }


@given(schedules())
def test_the_budget_falls_from_r_total_to_the_target(schedule):
    steps = range(1, schedule["total_step"] + 1)
    budgets = [budget(step, **schedule) for step in steps]
    assert all(a >= b for a, b in itertools.pairwise(budgets))
    for step, b in zip(steps, budgets, strict=True):
        assert schedule["target_total"] <= b <= schedule["init_total"]
        if step <= schedule["tinit"]:
            assert b == schedule["init_total"]
        if step >= schedule["total_step"] - schedule["tfinal"]:
            assert b == schedule["target_total"]


@given(schedules(), st.data())
def test_the_budget_is_the_cubic_rounded_down(schedule, data):
    first, last = schedule["tinit"] + 1, schedule["total_step"] - schedule["tfinal"]
    step = data.draw(st.integers(first, last))
    fall = 1 - (step - schedule["tinit"]) / (last - schedule["tinit"])
    low, high = schedule["target_total"], schedule["init_total"]
    assert abs(budget(step, **schedule) + 0.5 - (low + (high - low) * fall**3)) <= 0.5 + 1e-6


def test_golden_budgets():
    cubic = {"init_total": 576, "target_total": 144, "total_step": 100, "tinit": 10, "tfinal": 30}
    assert [budget(t, **cubic) for t in (10, 11, 25, 40, 55, 69, 70, 100)] == [
        576,
        554,
        326,
        198,
        150,
        144,
        144,
        144,
    ]


score_tables = st.integers(1, 6).flatmap(
    lambda r: st.lists(
        st.lists(st.sampled_from([0.0, 1e-9, 0.5, 0.5, 2.0]), min_size=r, max_size=r),
        min_size=1,
        max_size=8,
    )
)


@given(score_tables, st.data())
def test_a_mask_keeps_exactly_the_best_and_ties_go_by_position(table, data):
    scores = torch.tensor(table)
    kept = data.draw(st.integers(0, scores.numel()))
    mask = top_mask(scores, kept)
    assert mask.shape == scores.shape and int(mask.sum()) == kept
    flat, chosen = scores.flatten().tolist(), mask.flatten().tolist()
    expected = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:kept]
    assert [i for i, yes in enumerate(chosen) if yes] == sorted(expected)


def make_factors(config, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))

    r, k = config.r, config.k
    return Factors(
        u=[draw(d_in, k) for d_in, _ in SHAPES],
        v=[draw(k, r) for _ in SHAPES],
        lam=[draw(r) for _ in SHAPES],
        U=[draw(r, k) for _ in SHAPES],
        V=[draw(k, d_out) for _, d_out in SHAPES],
    )


def give_gradients(factors, seed):
    generator = torch.Generator().manual_seed(seed)
    for group in factors:
        for parameter in group:
            parameter.grad = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            ).to(parameter.dtype)


def pretend_optimizer_step(factors):
    with torch.no_grad():
        for group in factors:
            for parameter in group:
                parameter -= 0.1 * parameter.grad


class NaiveAllocator:
    """Algorithm 1 of the paper, one matrix and one element at a time."""

    def __init__(self, config, factors, total_step):
        self.config, self.T = config, total_step
        self.average = {id(p): torch.zeros_like(p) for group in factors for p in group}
        self.spread = {id(p): torch.zeros_like(p) for group in factors for p in group}
        self.mask = [[True] * config.r for _ in factors.lam]

    def S(self, p):
        return self.average[id(p)] * self.spread[id(p)]

    def score(self, factors, matrix, i):
        u, v, lam, U, V = (group[matrix] for group in factors)
        k = self.config.k
        score = self.S(lam)[i]
        score = score + sum(self.S(v)[j, i] for j in range(k)) / k
        score = score + sum(self.S(U)[i, j] for j in range(k)) / k
        if self.config.importance == "full":
            score = score + self.S(u).mean() + self.S(V).mean()
        return float(score)

    def step(self, t, factors):
        c = self.config
        if t <= self.T - c.tfinal:
            for p in (p for group in factors for p in group):
                now = (p * p.grad).abs().detach()
                old = self.average[id(p)]
                new = c.beta1 * old + (1 - c.beta1) * now
                self.average[id(p)] = new
                self.spread[id(p)] = (
                    c.beta2 * self.spread[id(p)] + (1 - c.beta2) * (now - new).abs()
                )
        if t <= c.tinit:
            return
        if t <= self.T - c.tfinal:
            if (t - c.tinit) % c.deltaT and t != self.T - c.tfinal:
                return
            n = len(SHAPES)
            kept = budget(
                t,
                init_total=n * c.r,
                target_total=n * c.target_r,
                total_step=self.T,
                tinit=c.tinit,
                tfinal=c.tfinal,
            )
            places = [(m, i) for m in range(n) for i in range(c.r)]
            places.sort(key=lambda place: -self.score(factors, *place))
            self.mask = [[(m, i) in places[:kept] for i in range(c.r)] for m in range(n)]
        with torch.no_grad():
            for lam, mask in zip(factors.lam, self.mask, strict=True):
                for i, kept in enumerate(mask):
                    if not kept:
                        lam[i] = 0


@pytest.mark.parametrize("importance", ["factored", "full"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("deltaT", [1, 4])
def test_batched_equals_algorithm_1_for_30_steps(importance, k, deltaT):
    config = Lora2Config(
        r=4, k=k, target_r=1, tinit=4, tfinal=6, deltaT=deltaT, beta2=0.6, importance=importance
    )
    ours, theirs = make_factors(config), make_factors(config)
    allocator = Allocator(config, ours, 30)
    naive = NaiveAllocator(config, theirs, 30)
    masks = [torch.ones(4, dtype=torch.bool) for _ in SHAPES]
    revived = 0
    for t in range(1, 31):
        before = allocator.mask.clone()
        for factors in (ours, theirs):
            give_gradients(factors, seed=t)
            pretend_optimizer_step(factors)
        allocator.step(t, ours, masks)
        naive.step(t, theirs)
        assert [mask.tolist() for mask in masks] == naive.mask
        for a, b in zip(ours.lam, theirs.lam, strict=True):
            assert torch.equal(a, b)
        revived += int((allocator.mask & ~before).sum())
    assert int(allocator.mask.sum()) == allocator.target_total == len(SHAPES)
    assert revived > 0 or deltaT > 1  # a pruned value came back in the middle phase
    allocator.check_finished(ours, masks)


def test_importance_can_change_the_kept_set():
    kept = {}
    for importance in ("factored", "full"):
        config = Lora2Config(r=4, k=2, target_r=1, importance=importance)
        factors = make_factors(config)
        allocator = Allocator(config, factors, 1)
        give_gradients(factors, seed=1)
        factors.u[2].grad *= 1000
        allocator.step(1, factors, [torch.ones(4, dtype=torch.bool) for _ in SHAPES])
        kept[importance] = allocator.mask.sum(1).tolist()
    assert kept["full"][2] == 4 and kept["factored"][2] < 4


def run(config, total_step, upto, allocator=None, factors=None, first=1):
    factors = factors or make_factors(config)
    allocator = allocator or Allocator(config, factors, total_step)
    masks = [mask.clone() for mask in allocator.mask]
    for t in range(first, upto + 1):
        give_gradients(factors, seed=t)
        pretend_optimizer_step(factors)
        allocator.step(t, factors, masks)
    return allocator, factors, masks


def test_between_renewals_pruned_values_may_grow_and_in_the_end_they_stay_zero():
    config = Lora2Config(r=4, k=1, target_r=1, tinit=2, tfinal=5, deltaT=3)
    allocator, factors, _ = run(config, 20, 5)
    pruned = ~allocator.mask
    assert pruned.any() and (torch.stack(list(factors.lam))[pruned] == 0).all()
    allocator, factors, _ = run(config, 20, 7, allocator, factors, first=6)
    assert torch.equal(~allocator.mask, pruned)
    assert (torch.stack(list(factors.lam))[pruned] != 0).all()
    allocator, factors, _ = run(config, 20, 15, allocator, factors, first=8)
    final = allocator.mask.clone()
    assert int(final.sum()) == 4
    for t in range(16, 21):
        run(config, 20, t, allocator, factors, first=t)
        assert torch.equal(allocator.mask, final)
        assert (torch.stack(list(factors.lam))[~final] == 0).all()


def test_importance_is_frozen_in_the_final_phase():
    config = Lora2Config(r=4, k=1, target_r=1, tfinal=5)
    allocator, factors, _ = run(config, 12, 7)
    frozen = allocator.sensitivity.clone(), allocator.uncertainty.clone()
    run(config, 12, 12, allocator, factors, first=8)
    assert torch.equal(allocator.sensitivity, frozen[0])
    assert torch.equal(allocator.uncertainty, frozen[1])


def test_warm_up_averages_but_does_not_mask():
    config = Lora2Config(r=4, k=1, target_r=1, tinit=3)
    allocator, factors, _ = run(config, 9, 3)
    assert allocator.mask.all() and (allocator.sensitivity > 0).all()
    assert all((lam != 0).all() for lam in factors.lam)


@pytest.mark.parametrize("total_step", [1, 2, 5, 7])
def test_the_target_is_reached_without_a_final_phase_whatever_deltaT(total_step):
    config = Lora2Config(r=4, k=1, target_r=3, deltaT=100)
    allocator, factors, masks = run(config, total_step, total_step)
    allocator.check_finished(factors, masks)
    assert int(torch.stack(masks).sum()) == 3 * len(SHAPES)


def test_a_step_with_infinite_gradients_teaches_nothing():
    config = Lora2Config(r=4, k=1, target_r=1)
    allocator, factors, masks = run(config, 9, 3)
    before = allocator.sensitivity.clone(), allocator.uncertainty.clone()
    for bad in (float("inf"), float("nan")):
        give_gradients(factors, seed=4)
        factors.v[1].grad[0, 0] = bad
        allocator.step(allocator.last_step + 1, factors, masks)
        assert torch.equal(allocator.sensitivity, before[0])
        assert torch.equal(allocator.uncertainty, before[1])


def test_a_resumed_allocator_continues_to_the_bit():
    config = Lora2Config(r=4, k=2, target_r=1, tinit=2, tfinal=4, deltaT=2, importance="full")
    whole, factors, _ = run(config, 20, 20)
    first, halfway, _ = run(config, 20, 9)
    state = first.state_dict()
    run(config, 20, 12, first, halfway, first=10)  # must not reach into the saved state
    _, halfway, _ = run(config, 20, 9)
    second = Allocator(config, halfway, 20)
    second.load_state_dict(state)
    second, resumed, _ = run(config, 20, 20, second, halfway, first=10)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key
    assert all(torch.equal(a, b) for a, b in zip(factors.lam, resumed.lam, strict=True))


def test_a_state_of_another_run_is_refused():
    config = Lora2Config(r=4, k=2, target_r=1)
    allocator, _, _ = run(config, 20, 3)
    state = allocator.state_dict()
    wider = Lora2Config(r=4, k=3, target_r=1)
    with pytest.raises(
        ValueError, match=r"sensitivity has shape \(80,\), this adapter needs \(112,"
    ):
        Allocator(wider, make_factors(wider), 20).load_state_dict(state)
    with pytest.raises(ValueError, match="made for total_step=20, this run has 30"):
        Allocator(config, make_factors(config), 30).load_state_dict(state)
    with pytest.raises(ValueError, match="one side only: mask, other"):
        allocator.load_state_dict(
            {**{k: state[k] for k in state if k != "mask"}, "other": state["mask"]}
        )


@pytest.mark.parametrize("step", [0, 2, 21, -1])
def test_a_step_out_of_order_is_refused(step):
    config = Lora2Config(r=4, k=1, target_r=1)
    factors = make_factors(config)
    give_gradients(factors, seed=1)
    allocator = Allocator(config, factors, 20)
    message = "beyond total_step=20" if step == 21 else f"step {step} follows step 0"
    with pytest.raises(ValueError, match=message):
        allocator.step(step, factors, list(allocator.mask.clone()))


def test_cleared_gradients_are_refused_and_frozen_factors_allowed():
    config = Lora2Config(r=4, k=1, target_r=1)
    factors = make_factors(config)
    allocator = Allocator(config, factors, 20)
    with pytest.raises(RuntimeError, match=r"between optimizer.step\(\) and optimizer.zero_grad"):
        allocator.step(1, factors, list(allocator.mask.clone()))
    give_gradients(factors, seed=1)
    for v in factors.v:
        v.requires_grad_(False).grad = None
    allocator.step(1, factors, list(allocator.mask.clone()))
    assert allocator.last_step == 1


def test_check_finished_finds_each_defect():
    config = Lora2Config(r=4, k=1, target_r=1, tfinal=2)
    allocator, factors, masks = run(config, 8, 7)
    with pytest.raises(RuntimeError, match="after step 7 of total_step=8"):
        allocator.check_finished(factors, masks)
    allocator, factors, masks = run(config, 8, 8)
    allocator.check_finished(factors, masks)
    with pytest.warns(UserWarning, match="loaded after training keep 16 singular values.* kept 4"):
        allocator.check_finished(factors, [torch.ones_like(mask) for mask in masks])
    with torch.no_grad():
        factors.lam[0].fill_(1)
    with pytest.raises(RuntimeError, match="are not zero"):
        allocator.check_finished(factors, masks)
    factors = make_factors(config)
    allocator = Allocator(config, factors, 8)
    for t in range(1, 9):
        for group in factors:
            for parameter in group:
                parameter.grad = torch.zeros_like(parameter)
        allocator.step(t, factors, masks)
    with pytest.raises(RuntimeError, match="only zero gradients"):
        allocator.check_finished(factors, masks)


def test_a_schedule_that_does_not_fit_is_refused():
    config = Lora2Config(r=4, k=1, target_r=1, tinit=10, tfinal=10)
    with pytest.raises(ValueError, match="leave no step for pruning in total_step=20"):
        Allocator(config, make_factors(config), 20)
