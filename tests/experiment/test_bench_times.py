"""Table 2 is made from the bench of this device where that measured what the table asks for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lora2.bench.record import RESULTS, slug, write
from lora2.experiment import bench_times, timetable
from lora2.experiment.profile import load_profile
from lora2.experiment.provenance import device_name
from lora2.experiment.tableplan import jobs, load_table, narrow
from tests.experiment.test_sweep_request import script

TASKS, ROWS = ("cola", "rte"), ("lora-r8", "adalora-r8", "lora2-k8")
ORIGIN = {"device": "cpu x 2", "commit": "abc", "dirty": False, "torch": "2"}
ORIGIN |= {"transformers": "5", "peft": "0.21"}


def bench(**changed: object) -> Path:
    """Write what the bench of this device would have, into the working directory."""
    lines = [
        {
            "task": task, "encoder": "deberta-v3-base", "layers": 12, "width": 768,
            "precision": "fp32",
            "batch": 32, "tokens": 20.5, "row": row, "rounds": 4, "seconds": seconds,
            "seconds_q1": 0.1, "seconds_q3": 9.0, "ratio_to_lora": seconds / 2,
            "ratio_to_adalora": seconds / 4 if row != "adalora-r8" else 1.0, **changed,
        }
        for task in TASKS
        for row, seconds in zip(ROWS, (2.0, 4.0, 3.0), strict=True)
    ]  # fmt: skip
    path = RESULTS / slug(device_name()) / "table2.csv"
    write(path, lines, ORIGIN)
    return path


def cells(profile: str = "paper", rows: tuple[str, ...] = (*ROWS, "full")):
    plan = narrow(load_table("2"), list(TASKS), list(rows))
    return plan, jobs(plan, load_profile(profile), None)


def test_times_ratios_and_where_they_are_from_are_the_benchs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, told = bench(), []
    plan, own = cells()
    frame = bench_times.known(plan, own, told.append)
    assert told == [f"table 2 from {path}: `make bench` measures it anew", "  not in it: full"]
    found = frame.set_index(["row", "task"])
    assert len(found) == 6
    ours = found.loc["lora2-k8", "rte"]
    assert (ours["seconds"], ours["ratio"], ours["layers"]) == (3.0, 0.75, 12)
    assert ours["paper_ratio"] == pytest.approx(1.65 / 1.44)
    assert (ours["commit"], ours["device"], ours["steps_measured"]) == ("abc", "cpu x 2", 4)
    assert math.isnan(found.loc["adalora-r8", "rte"]["ratio"])
    profile = load_profile("paper")
    paths = timetable.write(plan, frame, profile, tmp_path)
    text = paths[1].read_text()
    assert "(deberta-v3-base, 12 layers), fp32, on cpu x 2" in text
    assert "| LoRA² k=8 | 0.75 | 0.75 |" in text and "Full" not in text
    assert "Tokens per example, padding included: CoLA 20, RTE 20." in text
    assert timetable.rewrite(plan, profile, tmp_path) == paths and paths[1].read_text() == text


@pytest.mark.parametrize(
    "changed",
    [
        {"encoder": "minilm"},
        {"layers": 3},
        {"width": 128},
        {"precision": "bf16"},
        {"batch": 16},
        {"task": "cola"},
        {"row": "x"},
    ],
)
def test_what_the_bench_did_not_measure_is_measured_anew(changed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench_times.known(*cells(), pytest.fail) is None
    bench(**changed)
    assert bench_times.known(*cells(), pytest.fail) is None
    bench()
    assert bench_times.known(*cells("embedded", ROWS), pytest.fail) is None


@pytest.mark.parametrize("word", ["train.tf32=true", "backbone.attention=eager"])
def test_a_run_computed_otherwise_than_a_bench_is_measured_anew(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench()
    plan, _ = cells()
    assert bench_times.known(plan, jobs(plan, load_profile("paper"), None), print) is not None
    other = jobs(plan, load_profile("paper"), None, [word])
    assert bench_times.known(plan, other, pytest.fail) is None


def test_the_command_takes_no_step_where_a_bench_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bench()
    monkeypatch.setattr(timetable, "measure", lambda *_: pytest.fail("measured anew"))
    reproduce = script("reproduce")
    words = ["table=2", "profile=paper", "tasks=cola,rte", f"results.dir={tmp_path}"]
    assert reproduce.main(words) == 0
    assert "| LoRA² k=8 | 0.75 | 0.75 |" in capsys.readouterr().out
    assert reproduce.main([*words, "plan=true"]) == 0
    out = capsys.readouterr().out
    assert "takes" not in out and "`make bench` measures it anew" in out
