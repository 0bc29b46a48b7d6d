from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lora2.config.parse import options
from lora2.config.problems import ConfigError
from lora2.paper.numbers import printed_values
from lora2.sweep.table import distinct, jobs, load_profile, load_table, narrow

TABLES = options("table")
PAPER_ORDER = ["full", "bitfit", "adalora-r2", "lora-r1", "sora-r1", "lora2-k1", "adalora-r8",
               "lora-r8", "sora-r8", "lora2-k8"]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "rows", "tasks"),
    [("1", 11, 8), ("2", 8, 8), ("3", 5, 4), ("4", 4, 4), ("figure3", 1, 4),
     ("roberta-large", 11, 8)],
)  # fmt: skip
def test_tables_have_the_papers_size(table, rows, tasks):
    plan = load_table(table)
    assert (len(plan.rows), len(plan.tasks)) == (rows, tasks)


def test_table_1_has_the_papers_rows_in_order_and_marks_ours():
    plan = load_table("1")
    assert [row.id for row in plan.rows if not row.ours] == PAPER_ORDER
    assert [row.id for row in plan.rows if row.ours] == ["lora-xs"]
    assert all("ours" in row.label for row in plan.rows if row.ours)


def test_roberta_large_has_the_rows_of_table_1_all_marked_ours():
    first, other = load_table("1"), load_table("roberta-large")
    for row, same in zip(first.rows, other.rows, strict=True):
        assert (same.ours, same.paper_row) == (True, None)
        assert dataclasses.replace(same, ours=row.ours, paper_row=row.paper_row) == row


@pytest.mark.parametrize("table", ["1", "2", "3", "4"])
def test_every_row_of_the_paper_is_found_in_its_table(table):
    plan = load_table(table)
    rows = [row for row in plan.rows if not row.ours]
    printed = [printed_values(int(table), row.paper_row) for row in rows]
    assert all(row.paper_row is None for row in plan.rows if row.ours)
    assert len({tuple(one.items()) for one in printed}) == len(rows)


@pytest.mark.parametrize("profile", ["embedded", "paper"])
@pytest.mark.parametrize(("table", "runs"), [("3", 20), ("4", 16), ("figure3", 4)])
def test_small_tables_resolve(profile, table, runs):
    found = jobs(load_table(table), load_profile(profile), None)
    assert len(found) == len(distinct(found)) == runs
    assert {job.resolved.config.backbone.profile for job in found} == {profile}
    assert all(job.resolved.steps for job in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "table", "runs"),
    [
        (profile, table, runs)
        for profile in ("embedded", "small", "paper")
        for table, runs in (("1", 88), ("2", 64), ("3", 20), ("4", 16), ("figure3", 4))
    ]
    + [("embedded", "roberta-large", 88), ("paper", "roberta-large", 88)],
)
def test_all_tables_resolve_for_all_profiles(profile, table, runs):
    found = jobs(load_table(table), load_profile(profile), None)
    assert len(found) == len(distinct(found)) == runs


def test_rows_are_what_the_paper_says():
    plan = narrow(load_table("1"), ["cola"], None)
    methods = {
        job.row: job.resolved.config.method for job in jobs(plan, load_profile("paper"), None)
    }
    ranks = {row: getattr(method, "r", None) for row, method in methods.items()}
    assert ranks == {"full": None, "bitfit": None, "adalora-r2": None, "lora-r1": 1, "sora-r1": 1,
                     "lora2-k1": 8, "adalora-r8": None, "lora-r8": 8, "sora-r8": 8, "lora2-k8": 8,
                     "lora-xs": 16}  # fmt: skip
    assert (methods["lora2-k1"].k, methods["lora2-k8"].k) == (1, 8)
    assert (methods["adalora-r2"].init_r, methods["adalora-r2"].target_r) == (3, 2)
    assert (methods["adalora-r8"].init_r, methods["adalora-r8"].target_r) == (12, 8)
    plan = narrow(load_table("3"), ["mrpc"], None)
    found = [job.resolved.config.method for job in jobs(plan, load_profile("paper"), None)]
    assert [one.orthogonality for one in found] == ["uv", "UV", "uv+UV", "PQ", "uv+UV+PQ"]
    assert {one.k for one in found} == {1}
    plan = narrow(load_table("4"), ["mrpc"], None)
    found = [job.resolved.config.method for job in jobs(plan, load_profile("paper"), None)]
    assert [len(one.target_modules) for one in found] == [2, 2, 3, 6]
    assert found[1].target_modules == ["query", "value"]


def test_tables_share_the_runs_they_have_in_common():
    profile, cells = load_profile("paper"), []
    for name, row in (("1", "lora2-k1"), ("3", "all"), ("4", "all")):
        cells += jobs(narrow(load_table(name), ["mrpc"], [row]), profile, [1])
    assert len(cells) == 3 and len(distinct(cells)) == 1


def test_seeds_change_the_seed_alone_and_words_win():
    plan = narrow(load_table("1"), ["rte"], ["lora2-k1"])
    first, second = jobs(plan, load_profile("embedded"), [3, 4], ["method.k=2"])
    assert first.resolved.config.method.k == 2 and first.name != second.name
    assert dataclasses.replace(first.resolved.config, seed=4) == second.resolved.config


def test_problems_of_all_cells_are_told_once():
    plan = narrow(load_table("1"), ["rte", "mrpc"], ["lora-r1", "lora-r8"])
    with pytest.raises(ConfigError) as error:
        jobs(plan, load_profile("embedded"), None, ["train.batch=1", "method.rank=2"])
    assert [problem.key for problem in error.value.problems] == ["train.batch", "method.rank"]


def test_a_profile_without_the_encoder_is_refused():
    with pytest.raises(ConfigError, match="no encoder in place of roberta-large"):
        jobs(load_table("roberta-large"), load_profile("small"), None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: 3", "a list of rows"),
        ("rows: [{id: a}]", "label"),
        ("{kind: scores, table: 1, title: t, encoder: e, tasks: [sst], rows: []}", "tasks.0"),
        ("{kind: scores, table: 1, title: t, encoder: e, tasks: [rte], typo: 1, rows: []}", "typo"),
        (
            "{kind: scores, table: 1, title: t, encoder: e, tasks: [rte], rows: "
            "[{id: a, label: a, method: lora, against: b}, {id: a, label: b, method: lora}]}",
            "a name of one row only",
        ),
        (
            "{kind: scores, table: 1, title: t, encoder: e, tasks: [rte], rows: "
            "[{id: a, label: x, method: lora}, {id: b, label: x, method: full}]}",
            "label = 'x'",
        ),
        (
            "{kind: scores, table: 1, title: t, encoder: e, tasks: [rte], rows_of: x}",
            "list of rows",
        ),
        ("{kind: scores, table: 1, title: t, encoder: e, tasks: [rte], rows_of: y}", "rows_of|y"),
    ],
)
def test_a_wrong_table_file_is_refused(tmp_path: Path, text, message):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_table("x", tmp_path)
