from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig, get_peft_model
from torch import nn

from lora2.tuners.lora2.allocator import Allocator, budget, top_mask
from lora2.tuners.lora2.config import Lora2Config
from lora2.tuners.lora2.stacks import Factors

SHAPES = [(6, 5), (5, 9), (6, 5), (9, 6)]  # (d_in, d_out)
TWELVE = 3 * SHAPES


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


def make_factors(config, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    r, k = config.r, config.k
    return Factors(
        u=[draw(d_in, k) for d_in, _ in shapes],
        v=[draw(k, r) for _ in shapes],
        lam=[draw(r) for _ in shapes],
        U=[draw(r, k) for _ in shapes],
        V=[draw(k, d_out) for _, d_out in shapes],
    )


def give_gradients(factors, seed):
    generator = torch.Generator().manual_seed(seed)
    for group in factors:
        for parameter in group:
            shape = parameter.shape
            parameter.grad = torch.randn(shape, generator=generator, dtype=torch.float64)


def pretend_optimizer_step(factors):
    with torch.no_grad():
        for group in factors:
            for parameter in group:
                parameter -= 0.1 * parameter.grad


class NaiveAllocator:
    """Algorithm 1 of the paper, one matrix and one singular value at a time."""

    def __init__(self, config, factors, total_step):
        self.config, self.T = config, total_step
        self.average = {id(p): torch.zeros_like(p) for group in factors for p in group}
        self.spread = {id(p): torch.zeros_like(p) for group in factors for p in group}
        self.mask = [[True] * config.r for _ in factors.lam]

    def scores(self, factors, matrix):
        k = self.config.k
        S = [(self.average[id(g[matrix])] * self.spread[id(g[matrix])]).tolist() for g in factors]
        u, v, lam, U, V = S
        outer = 0.0
        if self.config.importance == "full":
            outer = sum(map(sum, u)) / (k * len(u)) + sum(map(sum, V)) / (k * len(V[0]))
        return [
            lam[i] + sum(v[j][i] for j in range(k)) / k + sum(U[i]) / k + outer
            for i in range(self.config.r)
        ]

    def step(self, t, factors):
        c = self.config
        if t < self.T - c.tfinal:
            for p in (p for group in factors for p in group):
                now = (p * p.grad).abs().detach()
                old = self.average[id(p)]
                new = c.beta1 * old + (1 - c.beta1) * now
                self.average[id(p)] = new
                self.spread[id(p)] = (
                    c.beta2 * self.spread[id(p)] + (1 - c.beta2) * (now - new).abs()
                )
        if t <= c.tinit or (t <= self.T - c.tfinal and t % c.deltaT):
            return
        n = len(factors.lam)
        low, high = n * c.target_r, n * c.r
        span = self.T - c.tfinal - c.tinit
        left = max(self.T - c.tfinal - t, 0)
        count = low + (high - low) * left**3 // span**3
        scores = [self.scores(factors, m) for m in range(n)]
        places = [(m, i) for m in range(n) for i in range(c.r)]
        best = set(sorted(places, key=lambda place: -scores[place[0]][place[1]])[:count])
        self.mask = [[(m, i) in best for i in range(c.r)] for m in range(n)]
        with torch.no_grad():
            for lam, mask in zip(factors.lam, self.mask, strict=True):
                for i, kept in enumerate(mask):
                    if not kept:
                        lam[i] = 0


@pytest.mark.parametrize("importance", ["factored", "full"])
# 3, 7 and 10 do not divide tinit, 7 and 10 not total_step - tfinal
@pytest.mark.parametrize(("k", "deltaT"), [(8, 1), (8, 3), (8, 7), (8, 10), (1, 3)])
def test_no_mask_differs_from_algorithm_1_in_60_steps(importance, k, deltaT):
    config = Lora2Config(
        r=8, k=k, target_r=3, tinit=11, tfinal=15, deltaT=deltaT, importance=importance
    )
    ours, theirs = make_factors(config, TWELVE), make_factors(config, TWELVE)
    allocator = Allocator(config, ours, 60)
    naive = NaiveAllocator(config, theirs, 60)
    masks = [torch.ones(8, dtype=torch.bool) for _ in TWELVE]
    compared = differ = revived = 0
    same_lambda = True
    for t in range(1, 61):
        before = allocator.mask.clone()
        for factors in (ours, theirs):
            give_gradients(factors, seed=t)
            pretend_optimizer_step(factors)
        allocator.step(t, ours, masks)
        naive.step(t, theirs)
        expected = torch.tensor(naive.mask)
        compared += expected.numel()
        differ += int((torch.stack(masks) != expected).sum())
        same_lambda &= torch.equal(torch.stack(ours.lam), torch.stack(theirs.lam))
        revived += int((allocator.mask & ~before).sum())
    assert (differ, compared) == (0, 12 * 8 * 60)
    assert same_lambda
    assert int(allocator.mask.sum()) == allocator.target_total == 12 * 3
    assert revived > 0  # a pruned value came back in the middle phase
    allocator.check_finished(ours, masks)


def adalora_and_ours(identities, config):
    """PEFT's AdaLoRA of six matrices, and Factors of the same numbers in LoRA2's form.

    PEFT averages the scores of A and B for each singular value. "uV": u and V are identities, so v
    and U are all of A and B, and Eq. 9 is that average. "vU": u and V are A and B, which Eq. 8
    averages over a whole matrix: the same number where all rows of A and columns of B are alike.
    """
    d, targets = 5, list("012345")
    schedule = {key: getattr(config, key) for key in ("tinit", "tfinal", "deltaT", "total_step")}
    adalora = AdaLoraConfig(init_r=config.r, target_r=1, target_modules=targets, **schedule)
    model = get_peft_model(nn.Sequential(*[nn.Linear(d, d) for _ in targets]), adalora).double()
    layers = [model.base_model.model[int(at)] for at in targets]
    theirs = {n: [getattr(x, f"lora_{n}")["default"] for x in layers] for n in "AEB"}
    for name, group in theirs.items():
        for parameter in group:
            parameter.data = noise(name, parameter, alike=identities == "vU")
    A, E, B = ([nn.Parameter(p.detach().T.clone()) for p in group] for group in theirs.values())
    lam = [nn.Parameter(p.detach().flatten()) for p in E]
    one = [nn.Parameter(torch.eye(config.k).double(), requires_grad=False) for _ in targets]
    ours = Factors(A, one, lam, one, B) if identities == "vU" else Factors(one, A, lam, B, one)
    return model, theirs, ours, {"A": A, "E": lam, "B": B}


def noise(name, like, alike):
    """Random numbers; if ``alike`` the same in every row of A and in every column of B."""
    drawn = torch.randn_like(like)
    if alike and name == "A":
        return drawn[:1].repeat(len(drawn), 1)
    return drawn[:, :1].repeat(1, drawn.shape[1]) if alike else drawn  # E has one column


@pytest.mark.parametrize("identities", ["uV", "vU"])
@pytest.mark.parametrize(
    ("deltaT", "tfinal", "forced"), [(1, 9, None), (4, 8, None), (4, 9, 31), (7, 3, 37)]
)
def test_in_adaloras_case_the_masks_are_those_of_pefts_adalora(identities, deltaT, tfinal, forced):
    config = Lora2Config(
        r=4, target_r=1, tinit=6, tfinal=tfinal, deltaT=deltaT, total_step=40,
        k=4 if identities == "vU" else 5, importance="full" if identities == "vU" else "factored",
    )  # fmt: skip
    torch.manual_seed(0)
    model, theirs, ours, trained = adalora_and_ours(identities, config)
    allocator = Allocator(config, ours, 40)
    masks = [torch.ones(4, dtype=torch.bool) for _ in ours.lam]
    counts = set()
    for t in range(1, 41):
        for name, group in theirs.items():
            for parameter, own in zip(group, trained[name], strict=True):
                parameter.grad = noise(name, parameter, alike=identities == "vU")
                own.grad = parameter.grad.T.reshape(own.shape)
        pretend_optimizer_step(theirs.values())
        pretend_optimizer_step(trained.values())
        model.base_model.update_and_allocate(t)
        allocator.step(t, ours, masks)
        expected, lam = torch.cat(theirs["E"], 1).T, torch.stack(ours.lam)  # (6, 4) each
        if t == forced:  # to the target already, although deltaT does not divide t: not so ours
            assert int((expected != 0).sum()) == allocator.target_total < int((lam != 0).sum())
        else:
            assert torch.equal(lam, expected), t
        counts.add(int((lam != 0).sum()))
    assert len(counts) > 3 and min(counts) == allocator.target_total == 6


def test_importance_can_change_the_kept_set():
    kept = {}
    for importance in ("factored", "full"):
        config = Lora2Config(r=4, k=2, target_r=1, importance=importance)
        factors = make_factors(config)
        allocator = Allocator(config, factors, 2)
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
    allocator, factors, _ = run(config, 20, 3)  # deltaT divides 3, not 3 - tinit
    pruned = ~allocator.mask
    assert pruned.any() and (torch.stack(list(factors.lam))[pruned] == 0).all()
    allocator, factors, _ = run(config, 20, 5, allocator, factors, first=4)
    assert torch.equal(~allocator.mask, pruned)
    assert (torch.stack(list(factors.lam))[pruned] != 0).all()
    allocator, factors, _ = run(config, 20, 15, allocator, factors, first=6)
    final = allocator.mask.clone()
    assert int(final.sum()) == 4
    for t in range(16, 21):
        run(config, 20, t, allocator, factors, first=t)
        assert torch.equal(allocator.mask, final)
        assert (torch.stack(list(factors.lam))[~final] == 0).all()


def test_importance_is_frozen_in_the_final_phase():
    config = Lora2Config(r=4, k=1, target_r=1, tfinal=5)
    allocator, factors, _ = run(config, 12, 6)  # the last of the steps t < T - tfinal
    frozen = allocator.averages[0].clone(), allocator.averages[1].clone()
    run(config, 12, 12, allocator, factors, first=7)
    assert torch.equal(allocator.averages[0], frozen[0])
    assert torch.equal(allocator.averages[1], frozen[1])


def test_warm_up_averages_but_does_not_mask():
    config = Lora2Config(r=4, k=1, target_r=1, tinit=3)
    allocator, factors, _ = run(config, 9, 3)
    assert allocator.mask.all() and (allocator.averages[0] > 0).all()
    assert all((lam != 0).all() for lam in factors.lam)


@pytest.mark.parametrize(("deltaT", "total_step"), [(1, 2), (1, 7), (3, 9), (9, 9)])
def test_without_a_final_phase_the_last_renewal_reaches_the_target(deltaT, total_step):
    config = Lora2Config(r=4, k=1, target_r=3, deltaT=deltaT)
    allocator, factors, masks = run(config, total_step, total_step)
    allocator.check_finished(factors, masks)
    assert int(torch.stack(masks).sum()) == 3 * len(SHAPES)


@pytest.mark.parametrize("deltaT", [5, 100])
def test_with_a_final_phase_any_deltaT_reaches_the_target(deltaT):
    config = Lora2Config(r=4, k=1, target_r=1, tfinal=1, deltaT=deltaT)
    allocator, factors, masks = run(config, 10, 9)
    assert int(torch.stack(masks).sum()) > len(SHAPES)  # deltaT does not divide 9
    run(config, 10, 10, allocator, factors, first=10)
    allocator.check_finished(factors, list(allocator.mask))


def test_a_step_with_infinite_gradients_teaches_nothing():
    config = Lora2Config(r=4, k=1, target_r=1)
    allocator, factors, masks = run(config, 9, 3)
    before = allocator.averages[0].clone(), allocator.averages[1].clone()
    for bad in (float("inf"), float("nan")):
        give_gradients(factors, seed=4)
        factors.v[1].grad[0, 0] = bad
        allocator.step(allocator.last_step + 1, factors, masks)
        assert torch.equal(allocator.averages[0], before[0])
        assert torch.equal(allocator.averages[1], before[1])


@pytest.mark.parametrize("stop", [9, 16, 17])  # before, at and after T - tfinal
def test_a_resumed_allocator_continues_to_the_bit(stop):
    config = Lora2Config(r=4, k=2, target_r=1, tinit=2, tfinal=4, deltaT=3, importance="full")
    whole, factors, _ = run(config, 20, 20)
    first, halfway, _ = run(config, 20, stop)
    state = first.state_dict()
    run(config, 20, stop + 3, first, halfway, first=stop + 1)  # must not reach into the state
    _, halfway, _ = run(config, 20, stop)
    second = Allocator(config, halfway, 20)
    second.load_state_dict(state)
    second, resumed, _ = run(config, 20, 20, second, halfway, first=stop + 1)
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


@pytest.mark.parametrize(
    ("schedule", "total_step", "message"),
    [
        ({"tinit": 10, "tfinal": 10}, 20, "leave no step for pruning in total_step=20"),
        ({"tfinal": 19}, 20, r"before the first of .*=20 steps is scored \(allowed: tfinal <= "),
        ({}, 1, "tfinal=0 freezes the scores before the first of total_step=1"),
        ({"deltaT": 3}, 20, r"deltaT=3 renews no mask at the last step, .*allowed: tfinal >= 1"),
        ({"deltaT": 100}, 20, "deltaT=100 renews no mask at the last step, total_step=20"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(schedule, total_step, message):
    config = Lora2Config(r=4, k=1, target_r=1, **schedule)
    with pytest.raises(ValueError, match=message):
        Allocator(config, make_factors(config), total_step)
    with pytest.raises(ValueError, match=message):
        Lora2Config(r=4, k=1, target_r=1, **schedule, total_step=total_step)
