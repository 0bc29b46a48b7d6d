from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from lora2.bench import step as bench_step
from lora2.bench.step import Measured
from lora2.sweep import cost as costs
from lora2.sweep.cost import Cost, evaluation_steps, key_of, render, sum_up
from lora2.sweep.pool import duration
from lora2.sweep.table import jobs, load_profile, load_table, narrow
from tests.sweep import sweep_fakes as fakes
from tests.sweep.sweep_fakes import job
from tests.sweep.test_request import script


def measuring(cost: Cost):
    """Stand in for ``costs.measure``: every step costs the same."""
    return lambda jobs, *_, **__: {key_of(one): cost for one in jobs}


def snapshot(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_row_adds_up_what_is_left_to_do(tmp_path):
    jobs = [job(tmp_path, 1), job(tmp_path, 2), job(tmp_path, 3, "lora2")]
    fakes.publish(jobs[0].resolved.config)
    found = {
        key_of(jobs[0]): Cost(0.5, 1000, 300.0, True),
        key_of(jobs[2]): Cost(2.0, 2_000_000, 700.0, False),
    }
    config = jobs[1].resolved.config
    extra = evaluation_steps(config, 50)
    evaluations = -(-50 // config.train.eval_steps)
    assert extra == pytest.approx(evaluations * 300 / 32 / 3)  # 300 rows of embedded RTE
    plan = sum_up(jobs, found)
    lora, lora2 = plan.itertuples()
    assert (lora.runs, lora.done, lora.steps, lora.measured) == (2, 1, 50, True)
    assert lora.seconds == pytest.approx(0.5 * (50 + extra))
    assert lora.step_seconds == 0.5 * 50 and lora.memory_mb == 300
    assert lora2.seconds == pytest.approx(2.0 * (50 + extra)) and not lora2.measured
    assert lora2.disk_mb == pytest.approx((8e6 + 0.3e6) / 2**20)
    text = render(plan, workers=2)
    assert "2 of 3 runs to do, 100 steps" in text and "scaled by tokens" in text
    both, half = duration(lora.seconds + lora2.seconds), (lora.seconds + lora2.seconds) / 2
    assert f"{both} one after another, {duration(half)} with 2 at once" in text
    first = render(plan.iloc[:1])
    assert "scaled" not in first and "at once" not in first


def test_what_was_not_measured_is_scaled_from_the_nearest_length():
    short, long = ("a", "", 64), ("a", "", 256)
    found = {short: Cost(1.0, 5, 10.0, True), long: Cost(6.0, 5, 20.0, True, held_mb=8.0)}
    # By the tokens that a batch has, not by the most it could have.
    sizes = {short: 40.0, long: 200.0, ("a", "", 320): 300.0, ("b", "", 128): 50.0}
    assert costs._scaled(("a", "", 320), found, sizes) == Cost(9.0, 5, 26.0, False, 8.0)
    assert costs._scaled(("b", "", 128), found, sizes) == Cost(1.25, 5, 12.5, False)


def test_every_row_is_measured_before_any_is_measured_twice(monkeypatch):
    own, measured, clock = Measured([2.0], 10.0, 7, 8.0, 3.0), [], [0.0]

    def measure(runs, *_, **__):
        measured.extend((row, config.task) for row, (config, _) in runs.items())
        clock[0] += 40.0
        return dict.fromkeys(runs, own)

    monkeypatch.setattr(bench_step, "measure", measure)
    monkeypatch.setattr(costs.time, "monotonic", lambda: clock[0])
    plan = narrow(load_table("1"), ["cola", "mnli"], ["lora-r8", "full"])
    left = jobs(plan, load_profile("paper"), None)
    told: list[str] = []
    monkeypatch.setattr(costs, "busy_warning", lambda threads: None)
    found = costs.measure(left, budget=30.0, tell=told.append)  # spent by the first row
    assert measured == [("lora-r8", "cola"), ("full", "cola")]
    assert told[0] == "  lora-r8, cola, 8 x 10 tokens: 2.000 s/step"
    assert {key[:2]: cost.measured for key, cost in found.items()} == {
        (row, task): task == "cola" for row in ("lora-r8", "full") for task in ("cola", "mnli")
    }
    measured.clear()
    costs.measure(left, budget=1e9, tell=told.append)
    assert [row for row, _ in measured] == ["lora-r8", "full"] * 2


def test_checkpoints_hold_the_trained_and_two_moments(tmp_path):
    def saving(steps):
        one = job(tmp_path)
        train = dataclasses.replace(one.resolved.config.train, save_steps=steps)
        config = dataclasses.replace(one.resolved.config, train=train)
        return dataclasses.replace(one, resolved=dataclasses.replace(one.resolved, config=config))

    found = {key_of(saving(10)): Cost(1.0, 2**20, 1.0, True)}
    assert sum_up([saving(10)], found)["checkpoint_mb"].item() == 12.0
    assert sum_up([saving(None)], found)["checkpoint_mb"].item() == 0.0


def test_steps_are_measured_with_the_threads_of_a_worker(tmp_path, monkeypatch):
    threads = []
    measured = Measured([2.0], 10.0, 7, 8.0, 3.0)

    def measure(runs, *_, **__):
        threads.append(torch.get_num_threads())
        return dict.fromkeys(runs, measured)

    monkeypatch.setattr(bench_step, "measure", measure)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    before = torch.get_num_threads()
    try:
        costs.measure([job(tmp_path, seed) for seed in range(4)])
        costs.measure([job(tmp_path, seed) for seed in range(4)], workers=2)
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 2]


def test_a_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0, 9.0, 9.0))
    assert costs.busy_warning(1) is None
    monkeypatch.setattr(os, "getloadavg", lambda: (5.5, 1.0, 1.0))
    assert "load 5.5 on 2 cores: the times below are CPU time" in costs.busy_warning(1)
    assert "longer than on an idle machine" in costs.busy_warning(2)


def test_plan_measures_a_real_step_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["table=1", "profile=embedded", "tasks=rte", "rows=lora2-k1", "plan=true"]
    assert script("reproduce").main(words) == 0
    assert snapshot(tmp_path) == []
    shown = capsys.readouterr().out
    assert "1 of 1 runs to do, 120 steps" in shown
    row = next(line for line in shown.splitlines() if line.startswith("lora2-k1 "))
    assert 0 < float(row.split()[4]) < 30  # seconds per step
    assert 0 < int(row.split()[-2].replace(",", "")) < 10_000  # MiB


def test_plan_of_a_timed_table_says_what_its_steps_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "measure", measuring(Cost(5.0, 1, 9.0, True)))
    words = ["table=2", "profile=embedded", "tasks=rte,mrpc", "rows=lora-r8,full", "plan=true"]
    assert script("reproduce").main(words) == 0
    shown = capsys.readouterr().out
    # 1 to warm up and 3 that count, of 2 rows x 2 tasks, 5 s each
    assert "4 of 4 runs to do, 16 steps: 80 s" in shown and "nothing is trained" in shown
    row = next(line for line in shown.splitlines() if line.startswith("full "))
    assert row.split()[1:] == ["2", "0", "8", "5.000", "40", "s", "9", "0.0"]
    assert snapshot(tmp_path) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(89, "89 s"), (91, "2 min"), (5400, "1.5 h"), (359_999, "100.0 h"), (864_000, "10 days")],
)
def test_times_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_plan_trains_nothing_when_a_sweep_would(tmp_path, monkeypatch, capsys):
    reproduce = script("reproduce")

    def refuse(*_):
        raise AssertionError("plan=true started a sweep")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora2.sweep.pool.Pool.do", refuse)
    monkeypatch.setattr(costs, "measure", measuring(Cost(1.0, 1, 1.0, True)))
    words = ["table=3", "profile=embedded", "tasks=rte,mrpc", "seeds=1,2"]
    assert reproduce.main([*words, "plan=true"]) == 0
    assert "20 of 20 runs to do" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="started a sweep"):
        reproduce.main(words)
