"""Cells, averages and the notes of a table built from synthetic runs."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from lora2.paper import numbers as paper_tables
from lora2.records import store
from lora2.sweep.table import load_table, narrow
from lora2.tables import build as tables
from lora2.tables.render import notes_of
from tests.tables.synthetic import make_results, make_run

ROWS = [
    {"label": "LoRA (r=8)", "method": "lora", "paper_row": {"method": "lora", "rank": 8},
     "against": "LoRA2 (k=8)"},
    {"label": "LoRA2 (k=1)", "method": "lora2", "k": 1, "ours": True, "against": "LoRA2 (k=8)"},
    {"label": "LoRA2 (k=8)", "method": "lora2", "k": 8, "ours": True,
     "paper_row": {"method": "lora2", "rank": 8}},
]  # fmt: skip


def built(
    folder: Path, tasks: list[str], seeds: list[int] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """The cells of Table 1 from the runs in ``folder``, and what is said under it."""
    runs = store.read(folder)
    results = make_results(runs, ROWS, tasks, seeds=seeds)
    return tables.build(results), notes_of(results)


def cell_of(frame: pd.DataFrame, label: str, task: str, metric: str | None = None) -> pd.Series:
    chosen = frame[(frame["label"] == label) & (frame["task"] == task)]
    if metric is not None:
        chosen = chosen[chosen["metric"] == metric]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_cell_mean_last_paper_and_difference(tmp_path: Path) -> None:
    for seed, score in enumerate([0.80, 0.82, 0.87]):
        make_run(tmp_path, f"a{seed}", seed=seed, score=score, settings={"k": 8}, last=0.7)
    frame, _ = built(tmp_path, ["rte"], [0, 1, 2])
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
    frame, flags = built(tmp_path, ["rte"], [0, 1, 2, 3, 4, 5])
    got = cell_of(frame, "LoRA2 (k=8)", "rte")
    counts = got[["n", "failed", "diverged", "ambiguous", "missing", "planned"]].tolist()
    assert counts == [1, 2, 1, 1, 1, 6]
    assert got["mean"] == pytest.approx(80.0)
    notes = " ".join(flags)
    assert "twice1, twice2" in notes and "not averaged" in notes


def test_average_follows_the_papers_rule(tmp_path: Path) -> None:
    printed = paper_tables.printed_values(1, {"method": "lora2", "rank": 8})
    tasks = list(paper_tables.TASK_METRICS)
    for task in tasks:
        scores = {m: printed[(task, m)] / 100 for m in paper_tables.TASK_METRICS[task]}
        make_run(tmp_path, task, task=task, score=scores, settings={"k": 8})
    frame, flags = built(tmp_path, tasks, [0])
    got = cell_of(frame, "LoRA2 (k=8)", "average")
    assert got["mean"] == pytest.approx(89.431875)
    assert got["paper"] == pytest.approx(89.431875) and got["difference"] == pytest.approx(0)
    assert any("prints an average of 89.68, its cells give 89.43" in note for note in flags)


def test_average_needs_every_task(tmp_path: Path) -> None:
    make_run(tmp_path, "a", task="rte", settings={"k": 8})
    make_run(tmp_path, "b", task="mrpc", status="diverged", settings={"k": 8})
    frame, _ = built(tmp_path, ["rte", "mrpc"], [0])
    assert "average" not in set(frame["task"])


def test_average_over_seeds_has_a_deviation_only_if_seeds_agree(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, f"r{seed}", task="rte", seed=seed, score=0.8 + seed / 10,
                 settings={"k": 8})  # fmt: skip
        make_run(tmp_path, f"m{seed}", task="mrpc", seed=seed, score=0.6, settings={"k": 8})
    got = cell_of(built(tmp_path, ["rte", "mrpc"])[0], "LoRA2 (k=8)", "average")
    assert got["n"] == 2 and got["mean"] == pytest.approx(72.5)
    assert got["std"] == pytest.approx(5 / math.sqrt(2)) and got["seeds"] == "0 1"
    make_run(tmp_path / "one", "r4", task="rte", seed=4, score=0.8, settings={"k": 8})
    make_run(tmp_path / "one", "m6", task="mrpc", seed=6, score=0.6, settings={"k": 8})
    got = cell_of(built(tmp_path / "one", ["rte", "mrpc"])[0], "LoRA2 (k=8)", "average")
    assert got["n"] == 1 and got["seeds"] == ""  # not those of one of the tasks
    make_run(tmp_path, "m2", task="mrpc", seed=2, score=0.9, settings={"k": 8})
    got = cell_of(built(tmp_path, ["rte", "mrpc"])[0], "LoRA2 (k=8)", "average")
    assert got["mean"] == pytest.approx((85 + 70) / 2) and math.isnan(got["std"])
    assert got["seeds"] == ""


def test_mixed_conditions_are_flagged(tmp_path: Path) -> None:
    make_run(tmp_path, "a", seed=0, settings={"k": 8}, commit="aaa", device="cpu")
    _, clean = built(tmp_path, ["rte"])
    assert not any("mixed" in note or "uncommitted" in note for note in clean)
    make_run(tmp_path, "b", seed=1, settings={"k": 8}, commit="bbb", device="gpu", dirty=True,
             torch="2.14.0", data_marks="unofficial validation", data_fingerprint="f2")  # fmt: skip
    make_run(tmp_path, "unused", method="sora", commit="ccc")
    text = " ".join(built(tmp_path, ["rte"])[1])
    for part in ("2 commits are mixed: aaa, bbb", "2 devices", "2 torch versions",
                 "1 of 2 runs come from a tree with uncommitted changes",
                 "Data of rte: unofficial validation",
                 "rte on 2 different versions of its data"):  # fmt: skip
        assert part in text
    assert "peft" not in text


def test_a_best_score_of_more_evaluations_is_flagged(tmp_path: Path) -> None:
    make_run(tmp_path, "a", method="lora", evaluations=31)
    make_run(tmp_path, "b", settings={"k": 1}, evaluations=12)
    make_run(tmp_path, "c", settings={"k": 8}, evaluations=12)
    make_run(tmp_path, "d", task="mrpc", method="lora", evaluations=9)
    make_run(tmp_path, "e", task="mrpc", settings={"k": 8}, evaluations=9)
    make_run(tmp_path, "f", task="mrpc", settings={"k": 1}, status="failed", evaluations=2)
    for name, number in (("lora", 31), ("lora2", 12)):
        k = {"k": 1} if name == "lora2" else None
        make_run(tmp_path, f"g{name}", task="qnli", method=name, settings=k, evaluations=number)
        k = {"k": 8} if name == "lora2" else None
        make_run(tmp_path, f"h{name}", task="sst2", method=name, settings=k, evaluations=number)
        make_run(tmp_path, f"i{name}", task="cola", method=name, settings=k, evaluations=number)
    tasks = ["rte", "mrpc", "qnli", "sst2", "cola"]
    flags = [note for note in built(tmp_path, tasks)[1] if "evaluations" in note]
    start = "rows had different numbers of evaluations: 12"
    end = "31 (LoRA (r=8)). The best of more evaluations tends to be higher."
    assert flags == [
        f"rte: {start} (LoRA2 (k=1) / LoRA2 (k=8)), {end}",
        f"qnli: {start} (LoRA2 (k=1)), {end}",
        f"sst2, cola: {start} (LoRA2 (k=8)), {end}",
    ]


def test_what_is_said_of_the_data_of_several_tasks_is_said_once(tmp_path: Path) -> None:
    for task, marks in (("rte", "made up"), ("mrpc", "made up"), ("cola", "")):
        make_run(tmp_path, task, task=task, settings={"k": 8}, data_marks=marks)
    assert [n for n in built(tmp_path, ["rte", "mrpc", "cola"])[1] if "Data" in n] == [
        "Data of rte, mrpc: made up."
    ]
    assert [n for n in built(tmp_path, ["rte", "mrpc"])[1] if "Data" in n] == [
        "Data of all tasks: made up."
    ]


def test_means_of_printed_numbers_are_rounded_as_on_paper() -> None:
    q_and_k = sum((68.66, 89.46, 91.69, 88.09)) / 4  # 84.475, a little less as a binary number
    assert f"{q_and_k:.2f}" == "84.47" and tables.as_printed(q_and_k) == "84.48"
    assert tables.as_printed(84.4749) == "84.47"


@pytest.mark.parametrize(
    ("settings", "step_best", "early"),
    [
        ({"r": 8, "target_r": 2, "tfinal": 40}, 59, True),
        ({"r": 8, "target_r": 2, "tfinal": 40}, 60, False),  # pruned for the last time at 60
        ({"r": 8, "target_r": 2, "tfinal": 40, "deltaT": 7}, 60, True),  # 7 does not divide 60
        ({"r": 8, "target_r": 2, "tfinal": 40, "deltaT": 7}, 61, False),
        ({"init_r": 12, "target_r": 8, "tfinal": 40}, 59, True),
        ({"r": 8, "target_r": 8, "tfinal": 40}, 1, False),
        ({"init_r": 8, "target_r": 8, "tfinal": 40}, 1, False),
        ({"r": 8, "target_r": None, "tfinal": 40}, 1, False),
        ({"r": 8, "xi": 0.001}, 99, True),  # gates move until the last step
        ({"r": 8, "xi": 0.001}, 100, False),
        ({"r": 8, "xi": 0.0, "xi_max": 0.001}, 99, True),
        ({"r": 8, "xi": 0.0, "xi_max": None}, 99, False),
        ({"r": 8}, 1, False),
    ],
)
def test_a_best_score_before_the_ranks_were_final_is_flagged(
    tmp_path: Path, settings: dict[str, object], step_best: int, early: bool
) -> None:
    changed = {"k": 8, **settings}
    make_run(tmp_path, "a", settings=changed, steps=100, step_best=step_best)
    make_run(tmp_path, "b", task="mrpc", settings=changed, steps=100, step_best=100)
    make_run(tmp_path, "c", settings={"k": 1, **settings}, steps=100, step_best=step_best)
    flags = [note for note in built(tmp_path, ["rte", "mrpc"])[1] if "were final" in note]
    expected = ["Best scores from a step before the ranks were final: LoRA2 (k=1) (rte); "
                "LoRA2 (k=8) (rte). The ranks kept are those of the last step."]  # fmt: skip
    assert flags == (expected if early else [])


def test_the_reference_is_the_row_that_is_named() -> None:
    table = load_table("1")
    references = {row.id: table.reference(row) for row in table.rows}
    assert references["lora-r1"].id == "lora2-k1" and references["lora2-k8"] is None
    part = narrow(table, None, ["lora-r1"])
    assert part.reference(part.rows[0]) is None
