from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from lora2.markup import markdown
from lora2.records import store
from lora2.sweep.pool import Pool
from lora2.sweep.table import jobs, load_profile, load_table, narrow
from lora2.tables import figure3 as figures
from lora2.tables import render
from lora2.tables.build import find_results, matching
from lora2.tables.render import is_official, report_table
from tests.sweep import sweep_fakes as fakes
from tests.sweep.test_request import script
from tests.tables.synthetic import make_run

PROFILE = load_profile("embedded")


def made(folder, table="3", rows=("uv", "all"), tasks=("rte",), seeds=(1, 2), extra=()):
    """Finish the runs of a part of a table in ``folder`` and return its plan."""
    plan = narrow(load_table(table), list(tasks), list(rows))
    words = [*extra, f"results.dir={folder}"]
    for job in jobs(plan, PROFILE, list(seeds), words):
        fakes.publish(job.resolved.config)
    return plan


def test_a_table_is_made_of_the_runs_with_its_settings(tmp_path, monkeypatch):
    plan = made(tmp_path)
    made(tmp_path, rows=("uv",), seeds=(1, 2, 3), extra=["train.max_steps=7"])
    monkeypatch.setattr(render, "is_official", lambda *_: True)
    shown = report_table(plan, PROFILE, tmp_path, [1, 2], (), store.collect(tmp_path))
    assert f"wrote {tmp_path / 'table3.md'}" in shown.splitlines()
    cells = pd.read_csv(tmp_path / "table3.csv").set_index(["label", "task"])
    cell = cells.loc[("R(u,v)", "rte")]
    assert cell["n"] == 2 and cell["mean"] == pytest.approx(50.15)  # seeds 1 and 2
    assert cell["paper"] == 89.17
    extra = ["train.max_steps=7"]
    report_table(plan, PROFILE, tmp_path, [3], extra, store.collect(tmp_path))
    cells = pd.read_csv(tmp_path / "table3.csv").set_index(["label", "task"])
    assert cells.loc[("R(u,v)", "rte"), "mean"] == pytest.approx(50.3)
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 7


def test_seeds_left_open_are_the_profiles_and_those_found(tmp_path, monkeypatch):
    plan = made(tmp_path, seeds=(2, 3))
    monkeypatch.setattr(render, "is_official", lambda *_: True)
    report_table(plan, PROFILE, tmp_path, None, (), store.collect(tmp_path))
    cells = pd.read_csv(tmp_path / "table3.csv").set_index(["label", "task"])
    assert cells.loc[("R(u,v)", "rte"), "planned"] == 3  # the profile's seed 1 is missing
    assert cells.loc[("R(u,v)", "rte"), "missing"] == 1


def test_a_folder_filled_elsewhere_with_batches_split_otherwise_holds_the_same_runs(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    plan = made(there, extra=["train.micro_batch_size=4", "train.eval_batch_size=7"])
    there.rename(here)
    runs = store.read(here)
    results = find_results(plan, PROFILE, here, None, (), runs)
    assert [len(results.cells[row.id]["rte"].finished) for row in plan.rows] == [2, 2]
    assert len(runs) == 4
    (job, _) = jobs(narrow(plan, None, ["uv"]), PROFILE, [1, 2])
    assert matching([job], runs)[job.name] != job.name


def test_no_runs_of_a_table_is_said(tmp_path):
    made(tmp_path, rows=("uv", "PQ"))  # Table 4 has the full regulariser in common
    with pytest.raises(store.StoreError, match="no runs of table 4"):
        report_table(load_table("4"), PROFILE, tmp_path, None, (), store.collect(tmp_path))


def test_the_figure_is_drawn_from_the_ranks_of_its_runs(tmp_path):
    plan = made(tmp_path, "figure3", ("lora2-k8",), ("mrpc", "sst2"), seeds=(1,))
    lines = [
        (f"layer.{layer}.{m}", layer, m, i, i < 3)
        for layer in range(2)
        for m in figures.SYMBOLS
        for i in range(8)
    ]
    ranks = pd.DataFrame(lines, columns=["module", "layer", "matrix", "index", "kept"])
    for folder in (tmp_path / "runs").iterdir():
        ranks.to_csv(folder / "ranks.csv", index=False)
    shown = report_table(plan, PROFILE, tmp_path, None, (), store.collect(tmp_path))
    paths = [tmp_path / "figure3.png", tmp_path / "figure3.svg"]
    assert shown.splitlines() == [f"wrote {path}" for path in paths]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_the_script_writes_what_the_runs_allow(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "embedded"
    made(folder, rows=("uv", "PQ"))
    report = script("report")
    # Which tables there are is the point here, not all of their runs.
    tables = {"table": ["3", "4"], "profile": ["embedded"]}
    monkeypatch.setattr(report, "options", tables.__getitem__)
    assert report.main([str(folder)]) == 0
    shown = capsys.readouterr()
    assert "json: 4 runs" in shown.out and "table3.md" in shown.out
    assert (folder / "table3.md").read_text().startswith("# Table 3")
    assert not (folder / "table4.md").exists()
    assert report.main([str(folder), "table=4"]) == 1
    assert "no runs of table 4" in capsys.readouterr().err
    assert report.main([str(tmp_path / "nothing"), "profile=embedded", "table=3"]) == 2
    assert report.main([str(folder), "table=8"]) == 2
    assert markdown(PROFILE.note) in (folder / "table3.md").read_text()


def test_a_folder_that_is_named_after_no_profile_has_that_of_its_runs(tmp_path, capsys):
    report, folder = script("report"), tmp_path / "quickstart"
    make_run(folder, "a", profile="embedded")
    assert report.profile_of(folder) == "embedded" and report.profile_of(Path("small")) == "small"
    make_run(folder, "b", profile="paper")
    assert report.main([str(folder)]) == 2
    assert "several profiles: choose one with profile=NAME" in capsys.readouterr().err


def test_a_part_or_a_variant_of_a_table_replaces_no_whole_one(tmp_path, capsys, monkeypatch):
    reproduce = script("reproduce")
    made(tmp_path, seeds=(1,))
    whole = tmp_path / "table3.md"
    whole.write_text("the whole table")
    words = ["table=3", "profile=embedded", "rows=uv,all", "tasks=rte", f"results.dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lora2.tables.times", None)  # it takes seconds to import
        assert reproduce.main(words) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 2 finished already" in shown and "| R(u,v) |" in shown
    assert f"a part or a variant of a table: shown, not written to {tmp_path}" in shown
    assert whole.read_text() == "the whole table"
    plan = load_table("3")
    assert is_official(plan, ["results.dir=x", "data.dir=y"])
    assert not is_official(plan, ["train.max_steps=9"])
    assert not is_official(narrow(plan, ["rte"], None), [])


def test_failures_are_named_with_their_logs_at_the_end_and_the_exit_is_1(
    tmp_path, capsys, monkeypatch
):
    reproduce = script("reproduce")
    pool = Pool([{}], run=fakes.run, record=fakes.record)
    monkeypatch.setattr("lora2.sweep.pool.Pool", lambda *_: pool)
    seeds = f"seeds=1,{fakes.FAILS},{fakes.DIES}"
    words = ["table=1", "profile=embedded", "tasks=rte", "rows=lora-r8", seeds]
    words += [f"results.dir={tmp_path}"]
    assert reproduce.main(words) == 1
    shown = capsys.readouterr()
    assert "3 runs, 0 finished already" in shown.out
    assert "(1/3; 1 failed, 1 missing)" in shown.out  # the table is there all the same
    *_, first, second, last = shown.err.splitlines()
    assert first.startswith(f"failed: rte-lora-s{fakes.FAILS}-") and "no such luck" in first
    assert second.startswith(f"failed: rte-lora-s{fakes.DIES}-") and "signal 9" in second
    logs = [line.rpartition("(")[2].rstrip(")") for line in (first, second)]
    assert "this is run 103" in Path(logs[0]).read_text()
    assert last == "2 runs failed; the same command tries them again"
    (tmp_path / "repaired").touch()
    assert reproduce.main(words) == 0
    assert "3 runs, 1 finished already" in capsys.readouterr().out
