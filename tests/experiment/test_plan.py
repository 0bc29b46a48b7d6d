from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lora2.experiment import plan as costs
from lora2.experiment.plan import Cost, evaluation_steps, key_of, lines, render
from tests.experiment import sweep_fakes as fakes
from tests.experiment.sweep_fakes import job
from tests.experiment.test_sweep_request import script


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
    lora, lora2 = lines(jobs, found)
    assert (lora.runs, lora.done, lora.steps, lora.measured) == (2, 1, 50, True)
    assert lora.hours == pytest.approx(0.5 * (50 + extra) / 3600)
    assert lora.seconds_per_step == 0.5 and lora.memory_mb == 300
    assert lora2.hours == pytest.approx(2.0 * (50 + extra) / 3600) and not lora2.measured
    assert lora2.disk_mb == pytest.approx((8e6 + 0.3e6) / 2**20)
    text = render([lora, lora2], 3, 0.0)
    assert "2 of 3 runs to do, 100 steps" in text and "scaled by tokens" in text
    assert "scaled" not in render([lora], 2, 0.0)


def test_what_was_not_measured_is_scaled_from_the_nearest_length():
    found = {("a", "", 64): Cost(1.0, 5, 10.0, True), ("a", "", 256): Cost(6.0, 5, 20.0, True)}
    assert costs._scaled(("a", "", 320), found) == Cost(6.0 * 320 / 256, 5, 25.0, False)
    assert costs._scaled(("b", "", 128), found) == Cost(2.0, 5, 20.0, False)


def test_checkpoints_hold_the_trained_and_two_moments(tmp_path):
    def saving(steps):
        one = job(tmp_path)
        train = dataclasses.replace(one.resolved.config.train, save_steps=steps)
        config = dataclasses.replace(one.resolved.config, train=train)
        return dataclasses.replace(one, resolved=dataclasses.replace(one.resolved, config=config))

    found = {key_of(saving(10)): Cost(1.0, 2**20, 1.0, True)}
    assert costs.checkpoint_mb([saving(10)], found) == 12.0
    assert costs.checkpoint_mb([saving(None)], found) == 0.0


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


def test_plan_trains_nothing_when_a_sweep_would(tmp_path, monkeypatch, capsys):
    reproduce = script("reproduce")

    def refuse(*_):
        raise AssertionError("plan=true started a sweep")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "run_all", refuse)
    monkeypatch.setattr(
        costs, "measure", lambda jobs, tell: {key_of(one): Cost(1.0, 1, 1.0, True) for one in jobs}
    )
    words = ["table=3", "profile=embedded", "tasks=rte,mrpc", "seeds=1,2"]
    assert reproduce.main([*words, "plan=true"]) == 0
    assert "20 of 20 runs to do" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="started a sweep"):
        reproduce.main(words)
