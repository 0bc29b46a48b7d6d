"""A sweep that is killed a few times ends as if it had been left alone; 50 times: the Makefile."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.faults import compare, kill_sweep


def fake_results(folder, score="0.5"):
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "history.csv").write_text("step\n1\n")
    (folder / "logs").mkdir()
    (folder / "logs" / "a.log").write_text(folder.name)
    row = {"run": "a", "score": score, "train_seconds": hash(folder), "commit": folder.name}
    pd.DataFrame([row]).to_csv(folder / "runs.csv", index=False)
    return folder


def test_differences_are_found_but_for_time_and_logs(tmp_path):
    one, other = fake_results(tmp_path / "one"), fake_results(tmp_path / "other")
    assert compare.differences(one, other) == []
    (other / "runs" / ".a.1234").mkdir()
    (other / "runs" / "a" / "history.csv").write_text("step\n2\n")
    (one / "table4.md").write_text("a table")
    found = compare.differences(one, other)
    assert found == ["only in one: table4.md", "only in other: runs/.a.1234/", "runs/a/history.csv"]
    third = fake_results(tmp_path / "third", score="0.25")
    (line,) = compare.differences(fake_results(tmp_path / "fourth"), third)
    assert line.startswith("runs.csv:") and "0.25" in line


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_as_one_left_alone(tmp_path, capsys):
    words = ["table=4", "tasks=mrpc", "rows=qk,qv", "profile=embedded", "workers=2"]
    lengths = ["train.max_steps=40", "train.eval_steps=10", "train.save_steps=10"]
    options = ["--kills", "3", "--seed", "2", "--into", str(tmp_path)]
    code = kill_sweep.main([*options, *words, *lengths])
    report = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert report["different"] == [] and code == 0
    assert report["kills"] == 3 and report["runs"] == 2 and report["starts"] >= 3
