"""Cells, averages and the notes of a table built from synthetic runs."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic import make_run

from lora2.report import paper_tables, plan, store, tables

ROWS = [
    {"label": "LoRA (r=8)", "method": "lora", "match": {"method.r": 8},
     "paper_row": {"method": "lora", "rank": 8}},
    {"label": "LoRA2 (k=1)", "method": "lora2", "match": {"method.k": 1}, "ours": True},
    {"label": "LoRA2 (k=8)", "method": "lora2", "match": {"method.k": 8}, "ours": True,
     "paper_row": {"method": "lora2", "rank": 8}},
]  # fmt: skip


def make_plan(tasks: list[str], seeds: list[int] | None = None, **more: object) -> plan.Plan:
    return plan.parse({"table": 1, "rows": ROWS, "tasks": tasks, "seeds": seeds, **more})


def cell_of(frame: pd.DataFrame, label: str, task: str, metric: str | None = None) -> pd.Series:
    chosen = frame[(frame["label"] == label) & (frame["task"] == task)]
    if metric is not None:
        chosen = chosen[chosen["metric"] == metric]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_cell_mean_last_paper_and_difference(tmp_path: Path) -> None:
    for seed, score in enumerate([0.80, 0.82, 0.87]):
        make_run(tmp_path, f"a{seed}", seed=seed, score=score, settings={"k": 8}, last=0.7)
    frame = tables.build(make_plan(["rte"], [0, 1, 2]), store.read(tmp_path))
    got = cell_of(frame, "LoRA2 (k=8)", "rte")
    assert (got["n"], got["planned"], got["seeds"]) == (3, 3, "0 1 2")
    assert got["mean"] == pytest.approx(83.0) and got["std"] == pytest.approx(math.sqrt(13))
    assert (got["last_mean"], got["last_std"]) == (pytest.approx(70.0), pytest.approx(0))
    assert got["paper"] == 88.45 and got["difference"] == pytest.approx(83.0 - 88.45)
    assert got["ci_low"] < 83 < got["ci_high"]
    assert cell_of(frame, "LoRA2 (k=1)", "rte")["n"] == 0


def test_lost_runs_are_counted_and_never_averaged(tmp_path: Path) -> None:
    make_run(tmp_path, "ok", seed=0, score=0.8, settings={"k": 8})
    make_run(tmp_path, "bad", seed=1, status="failed", settings={"k": 8})
    make_run(tmp_path, "nan", seed=2, status="diverged", settings={"k": 8}, best_accuracy=0.1)
    make_run(tmp_path, "unscored", seed=3, score={}, settings={"k": 8})
    make_run(tmp_path, "twice1", seed=4, score=0.1, settings={"k": 8})
    make_run(tmp_path, "twice2", seed=4, score=0.2, settings={"k": 8})
    make_run(tmp_path, "unplanned", seed=9, score=0.1, settings={"k": 8})
    the_plan, runs = make_plan(["rte"], [0, 1, 2, 3, 4, 5]), store.read(tmp_path)
    got = cell_of(tables.build(the_plan, runs), "LoRA2 (k=8)", "rte")
    counts = got[["n", "failed", "diverged", "ambiguous", "missing", "planned"]].tolist()
    assert counts == [1, 2, 1, 1, 1, 6]
    assert got["mean"] == pytest.approx(80.0)
    notes = " ".join(tables.flags(the_plan, runs))
    assert "twice1, twice2" in notes and "not averaged" in notes


def test_average_follows_the_papers_rule(tmp_path: Path) -> None:
    printed = paper_tables.printed_values(1, {"method": "lora2", "rank": 8})
    tasks = list(paper_tables.TASK_METRICS)
    for task in tasks:
        scores = {m: printed[(task, m)] / 100 for m in paper_tables.TASK_METRICS[task]}
        make_run(tmp_path, task, task=task, score=scores, settings={"k": 8})
    the_plan, runs = make_plan(tasks, [0]), store.read(tmp_path)
    got = cell_of(tables.build(the_plan, runs), "LoRA2 (k=8)", "average")
    assert got["mean"] == pytest.approx(89.431875)
    assert got["paper"] == pytest.approx(89.431875) and got["difference"] == pytest.approx(0)
    assert any("prints an average of 89.68, its cells give 89.43" in n
               for n in tables.flags(the_plan, runs))  # fmt: skip


def test_average_needs_every_task(tmp_path: Path) -> None:
    make_run(tmp_path, "a", task="rte", settings={"k": 8})
    make_run(tmp_path, "b", task="mrpc", status="diverged", settings={"k": 8})
    frame = tables.build(make_plan(["rte", "mrpc"], [0]), store.read(tmp_path))
    assert "average" not in set(frame["task"])


def test_average_over_seeds_has_a_deviation_only_if_seeds_agree(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, f"r{seed}", task="rte", seed=seed, score=0.8 + seed / 10,
                 settings={"k": 8})  # fmt: skip
        make_run(tmp_path, f"m{seed}", task="mrpc", seed=seed, score=0.6, settings={"k": 8})
    the_plan = make_plan(["rte", "mrpc"])
    got = cell_of(tables.build(the_plan, store.read(tmp_path)), "LoRA2 (k=8)", "average")
    assert got["n"] == 2 and got["mean"] == pytest.approx(72.5)
    assert got["std"] == pytest.approx(5 / math.sqrt(2)) and got["seeds"] == "0 1"
    make_run(tmp_path, "m2", task="mrpc", seed=2, score=0.9, settings={"k": 8})
    got = cell_of(tables.build(the_plan, store.read(tmp_path)), "LoRA2 (k=8)", "average")
    assert got["mean"] == pytest.approx((85 + 70) / 2) and math.isnan(got["std"])
    assert got["seeds"] == ""


def test_rows_are_matched_by_settings_and_columns(tmp_path: Path) -> None:
    make_run(tmp_path, "k1", settings={"k": 1, "target_modules": ["query", "key"]})
    make_run(tmp_path, "k8", settings={"k": 8, "target_modules": ["query"]}, protocol="equal")
    runs = store.read(tmp_path)

    def chosen(**row: object) -> list[str]:
        return plan.select(runs, plan.Row(label="x", method="lora2", **row))["run"].tolist()

    assert chosen(match={"method.k": 1}) == ["k1"]
    assert chosen(match={"method.k": 8.0, "protocol": "equal"}) == ["k8"]
    assert chosen(match={"method.target_modules": ["query", "key"]}) == ["k1"]
    assert chosen(match={"method.absent": None}) == []
    assert chosen(runs=["k8"]) == ["k8"]
    assert chosen() == ["k1", "k8"]
    assert plan.select(runs, plan.Row(label="x", method="lora")).empty


def test_seconds_per_step_is_a_table_too(tmp_path: Path) -> None:
    make_run(tmp_path, "a", settings={"k": 8}, seconds_per_step=1.5)
    data = {"table": 2, "tasks": ["rte"], "metrics": {"rte": ["seconds_per_step"]},
            "rows": [{"label": "LoRA2", "method": "lora2", "ours": True,
                      "paper_row": {"column": "lora2_s_per_it"}}]}  # fmt: skip
    frame = tables.build(plan.parse(data), store.read(tmp_path))
    got = cell_of(frame, "LoRA2", "rte")
    assert (got["mean"], got["paper"]) == (1.5, 1.65) and math.isnan(got["last_mean"])


def test_mixed_conditions_are_flagged(tmp_path: Path) -> None:
    make_run(tmp_path, "a", seed=0, settings={"k": 8}, commit="aaa", device="cpu")
    the_plan = make_plan(["rte"])
    clean = tables.flags(the_plan, store.read(tmp_path))
    assert not any("mixed" in note or "uncommitted" in note for note in clean)
    make_run(tmp_path, "b", seed=1, settings={"k": 8}, commit="bbb", device="gpu", dirty=True,
             torch="2.14.0", data_marks="unofficial validation", data_fingerprint="f2")  # fmt: skip
    make_run(tmp_path, "unused", method="sora", commit="ccc")
    text = " ".join(tables.flags(the_plan, store.read(tmp_path)))
    for part in ("2 commits are mixed: aaa, bbb", "2 devices", "2 torch versions",
                 "1 of 2 runs come from a tree with uncommitted changes",
                 "Data of rte: unofficial validation",
                 "rte on 2 different versions of its data"):  # fmt: skip
        assert part in text
    assert "peft" not in text


def test_reference_rows() -> None:
    the_plan = make_plan(["rte"])
    lora, small, large = the_plan.rows
    assert the_plan.reference(lora) is small  # the next of ours below
    assert the_plan.reference(small) is large and the_plan.reference(large) is None
    data = [{**row, "against": "LoRA2 (k=8)"} for row in ROWS[:1]] + ROWS[1:]
    named = plan.parse({"table": 1, "rows": data, "tasks": ["rte"]})
    assert named.reference(named.rows[0]) is named.rows[2]
    none = plan.parse({"table": 1, "rows": ROWS[:1], "tasks": ["rte"]})
    assert none.reference(none.rows[0]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["wnli"]}, "unknown task 'wnli'"),
        ({"row": []}, "not row"),
        ({"rows": [{"label": "x"}]}, "needs label and method"),
        ({"rows": [{"label": "x", "method": "lora", "macth": {}}]}, "needs label and method"),
        ({"rows": [ROWS[0], ROWS[0]]}, "share a label"),
        ({"rows": [{**ROWS[0], "against": "no such"}]}, "which is no row"),
    ],
)
def test_wrong_plans_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(plan.PlanError, match=message):
        plan.parse({"table": 1, "rows": ROWS, "tasks": ["rte"], **change})
