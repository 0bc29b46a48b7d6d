"""A study: rates chosen without the validation split, final runs at them, one report of both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lora2.experiment import driving, worker
from lora2.experiment.compose import CONFIGS, options
from lora2.experiment.problems import ConfigError
from lora2.experiment.selection import SelectionError, choose, scored
from lora2.experiment.study import load_study
from lora2.experiment.studyrequest import parse_study
from lora2.experiment.studyruns import candidates, final_parts, first_rates
from lora2.experiment.tableplan import load_table
from lora2.glue import data as glue_data
from lora2.report import store
from tests.experiment import sweep_fakes as fakes
from tests.experiment.test_sweep_request import script

TINY = {
    "note": "a tiny study.",
    "profile": "embedded",
    "protocol": "equal",
    "tasks": ["mrpc"],
    "rows": ["lora-r1", "lora2-k1"],
    "seeds": [1, 2],
    "grid": {"lora": [0.002, 0.008], "lora2": [0.002, 0.008]},
    "select": "method",
    "holdout": {"mrpc": 60},
    "selection_seed": 9,
    "overrides": ["train.max_steps=4", "train.eval_steps=2", "train.batch_size=8"],
    "tables": [{"table": "3", "rate_of": "lora2-k1", "rows": ["uv", "all"], "seeds": [1]}],
}


def configs(folder: Path, **changes: object) -> Path:
    """Write configs/study/tiny.yaml under ``folder`` and return that configs folder."""
    path = folder / "configs" / "study" / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path.parents[1]


def here(jobs, sweep, already=0):
    """Stand in for ``run_all``: the same runs, in this process."""
    return [
        worker.carry_out(worker.Order(one.resolved.config), worker.train, worker.record_death)
        for one in jobs
    ]


@pytest.fixture
def begun(monkeypatch):
    """Have sweeps run in this process; return the names of the runs that were begun."""
    names: list[str] = []

    def noted(jobs, sweep, already=0):
        names.extend(one.name for one in jobs)
        return here(jobs, sweep)

    monkeypatch.setattr(driving, "run_all", noted)
    return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a whole study, the runs begun in it, and the splits each one read."""
    folder, names, splits = tmp_path_factory.mktemp("whole"), [], []
    read = glue_data._read

    def noted(jobs, sweep, already=0):
        names.extend(one.name for one in jobs)
        return here(jobs, sweep)

    def noting(task, source, dir, wanted):
        splits.append(wanted)
        return read(task, source, dir, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driving, "run_all", noted)
        patch.setattr(glue_data, "_read", noting)
        assert do(folder) == 0
    return folder, names, splits


def do(folder: Path, *words: str, **changes: object) -> int:
    request = parse_study(
        ["study=tiny", f"results.dir={folder / 'out'}", *words], configs(folder, **changes)
    )
    return script("study").run_study(request)


@pytest.mark.parametrize("name", options("study"))
def test_every_study_file_gives_its_runs(name, tmp_path):
    study = load_study(name)
    profile = study.profile
    rows = len(study.rows or load_table("1").rows)
    parts = final_parts(study, first_rates(study), ["data.source=hub"])
    assert len(parts[0].jobs) == rows * len(study.tasks) * len(study.seeds)
    assert {job.resolved.config.backbone.profile for part in parts for job in part.jobs} == {
        "embedded" if profile == "embedded" else profile
    }
    found = candidates(study, ["data.source=hub"])
    assert all(one.job.resolved.config.data.holdout for one in found)
    assert all(job.resolved.config.data.holdout is None for part in parts for job in part.jobs)
    assert {job.resolved.config.protocol for part in parts for job in part.jobs} == {"equal"}
    groups = {one.group for one in found}
    assert groups == set(first_rates(study))


def test_the_shipped_studies_are_the_three_profiles():
    assert options("study") == ["paper", "small", "small-cpu"]


def test_further_tables_leave_out_what_the_encoder_was_trained_on():
    study = load_study("small")
    parts = final_parts(study, first_rates(study), ["data.source=hub"])
    tasks = {part.plan.name: list(part.plan.tasks) for part in parts}
    assert tasks["3"] == ["mrpc"] and tasks["4"] == ["cola", "mrpc"]
    assert tasks["figure3"] == ["mrpc", "sst2"] and "stsb" in tasks["1"]


def test_a_study_goes_from_the_selection_to_its_tables(finished):
    out = finished[0] / "out"
    rates = pd.read_csv(out / "rates.csv")
    assert len(rates) == 4 and list(rates["status"]) == ["finished"] * 4
    assert set(rates["seed"]) == {9} and set(rates["holdout"]) == {60}
    assert list(rates.groupby("method")["chosen"].sum()) == [1, 1]
    runs = store.read(out)
    assert len(runs) == 5 and not runs["data_marks"].str.contains("held out").any()
    assert len(store.read(out / "selection")) == 4
    chosen = rates.loc[rates["chosen"]].set_index("method")["learning_rate"]
    for run, settings in zip(runs.to_dict("records"), store.settings(runs), strict=True):
        assert settings["train.learning_rate"] == chosen[run["method"]]
    curves = pd.read_csv(out / "curves.csv")
    assert set(curves["run"]) == set(runs["run"])
    assert sorted(curves["table"].astype(str).unique()) == ["1", "3"]
    assert len(curves) == 2 * len(runs) and set(curves["step"]) == {2, 4}
    for name in ("table1.md", "table3.md"):
        text = (out / name).read_text()
        assert "rows held out of train (60 of mrpc; seed 9)" in text and "a tiny study." in text
    cells = pd.read_csv(out / "table1.csv")
    assert list(cells.loc[cells["task"] == "mrpc", "n"]) == [2, 2]


def test_the_selection_never_reads_validation_and_the_final_runs_do(finished):
    _, names, splits = finished
    assert len(splits) == len(names) == 9
    assert set(splits[:4]) == {("train",)} and set(splits[4:]) == {("train", "validation")}


def test_a_study_stopped_anywhere_goes_on_and_ends_the_same(finished, tmp_path, begun, monkeypatch):
    whole, all_of_it, _ = finished

    def stopping_after(count):
        def stopped(jobs, sweep, already=0):
            names = [one.name for one in jobs]
            here(jobs[:count], sweep)
            begun.extend(names[:count])
            raise KeyboardInterrupt

        return stopped

    going_on = driving.run_all
    for count in (1, 3, 2):  # in the selection; at its end; in the final runs
        monkeypatch.setattr(driving, "run_all", stopping_after(count))
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path)
    monkeypatch.setattr(driving, "run_all", going_on)
    assert do(tmp_path) == 0
    assert sorted(begun) == sorted(all_of_it) and len(set(begun)) == len(begun)
    for name in ("rates.csv", "curves.csv", "table1.csv", "table1.md", "table3.csv"):
        assert (whole / "out" / name).read_text() == (tmp_path / "out" / name).read_text(), name


def test_tables_can_be_made_again_without_the_run_folders(finished, tmp_path, begun):
    out = tmp_path / "out"
    shutil.copytree(finished[0] / "out", out)
    names = ("rates.csv", "curves.csv", "table1.csv", "table3.csv")
    before = {name: (out / name).read_text() for name in names}
    for folder in (out / "runs", out / "selection" / "runs"):
        shutil.rmtree(folder)
    assert do(tmp_path, "only=tables") == 0 and begun == []
    assert {name: (out / name).read_text() for name in names} == before


def test_final_runs_wait_for_the_whole_selection(tmp_path, begun, capsys):
    assert do(tmp_path, "only=final") == 1
    assert "of 4 selection runs 4 missing" in capsys.readouterr().err
    assert begun == [] and not (tmp_path / "out" / "rates.csv").exists()


def select(tmp_path: Path, scores: dict[float, tuple[float, str]], **changes: object):
    """Publish selection runs of ``tmp_path``'s study with a score and status for each rate."""
    study = load_study("tiny", configs(tmp_path, **changes))
    found = candidates(study, [f"results.dir={tmp_path / 'selection'}"])
    for one in found:
        score, status = scores[one.rate]
        fakes.publish(one.job.resolved.config, status)
        path = tmp_path / "selection" / "runs" / one.job.name / "metrics.csv"
        frame = pd.read_csv(path)
        lora2_bonus = 1.0 if one.method == "lora2" else 0.0
        if status == "finished":
            values = {"score_best": score + lora2_bonus, "score_last": score, "step_best": 2}
            frame = frame.assign(**values)
        frame.to_csv(path, index=False)
    return study, found


def test_the_best_sum_over_tasks_is_chosen_and_a_tie_goes_to_the_smaller_rate(tmp_path):
    tasks = {"tasks": ["mrpc", "rte"], "holdout": {"mrpc": 60, "rte": 60}}
    study, found = select(tmp_path, {0.002: (50, "finished"), 0.008: (60, "finished")}, **tasks)
    assert set(choose(study, found, tmp_path).values()) == {0.008}
    frame = pd.read_csv(tmp_path / "rates.csv")
    assert frame.loc[frame["chosen"], "sum"].tolist() == [120, 120, 122, 122]
    (tmp_path / "b").mkdir()
    study, found = select(tmp_path / "b", {0.002: (55, "finished"), 0.008: (55, "finished")})
    assert set(choose(study, found, tmp_path / "b").values()) == {0.002}


def test_a_diverged_candidate_is_shown_and_never_chosen(tmp_path):
    study, found = select(tmp_path, {0.002: (50, "finished"), 0.008: (0, "diverged")})
    assert set(choose(study, found, tmp_path).values()) == {0.002}
    frame = pd.read_csv(tmp_path / "rates.csv")
    assert list(frame["status"]) == ["finished", "diverged"] * 2
    assert list(frame["chosen"]) == [True, False] * 2


def test_a_rate_that_diverged_on_one_task_is_out_on_all(tmp_path):
    tasks = {"tasks": ["mrpc", "rte"], "holdout": {"mrpc": 60, "rte": 60}}
    study, found = select(tmp_path, {0.002: (10, "finished"), 0.008: (90, "finished")}, **tasks)
    (one,) = [c for c in found if (c.method, c.rate, c.job.task) == ("lora", 0.008, "rte")]
    status = tmp_path / "selection" / "runs" / one.job.name / "status"
    status.write_text("diverged\n")
    metrics = status.with_name("metrics.csv")
    metrics.write_text(metrics.read_text().replace("finished", "diverged"))
    assert choose(study, found, tmp_path) == {("lora",): 0.002, ("lora2",): 0.008}


def test_a_grid_that_diverged_altogether_and_failed_runs_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    study, found = select(tmp_path / "a", {0.002: (0, "diverged"), 0.008: (0, "diverged")})
    with pytest.raises(SelectionError, match="every learning rate of lora, lora2 diverged"):
        choose(study, found, tmp_path / "a")
    (tmp_path / "b").mkdir()
    study, found = select(tmp_path / "b", {0.002: (50, "finished"), 0.008: (0, "failed")})
    (tmp_path / "b" / "rates.csv").write_text("whole\n")
    with pytest.raises(SelectionError, match="2 failed"):
        choose(study, found, tmp_path / "b")
    assert (tmp_path / "b" / "rates.csv").read_text() == "whole\n"


@pytest.mark.parametrize(
    ("select_by", "groups"),
    [
        ("method", {("lora",)}),
        ("row", {("lora-r1",), ("lora-r8",)}),
        ("method-task", {("lora", "mrpc"), ("lora", "rte")}),
        ("row-task", {(r, t) for r in ("lora-r1", "lora-r8") for t in ("mrpc", "rte")}),
    ],
)
def test_the_file_says_what_has_a_rate_of_its_own(tmp_path, select_by, groups):
    changes = {
        "rows": ["lora-r1", "lora-r8"], "tasks": ["mrpc", "rte"], "grid": {"lora": [0.1, 0.2]},
        "holdout": {"mrpc": 60, "rte": 60}, "select": select_by, "tables": [],
    }  # fmt: skip
    study = load_study("tiny", configs(tmp_path, **changes))
    found = candidates(study)
    assert {one.group for one in found} == groups and len(found) == 8
    frame = scored(study, found, None)
    assert set(frame["status"]) == {"missing"} and not frame["chosen"].any()


def test_named_rows_alone_choose_for_their_method(tmp_path):
    changes = {"rows": ["lora-r1", "lora-r8", "lora2-k1"], "select_rows": {"lora": ["lora-r8"]}}
    study = load_study("tiny", configs(tmp_path, **changes))
    assert {one.job.row for one in candidates(study)} == {"lora-r8", "lora2-k1"}
    jobs = final_parts(study, {("lora",): 0.5, ("lora2",): 0.25})[0].jobs
    assert {(job.row, job.resolved.config.train.learning_rate) for job in jobs} == {
        ("lora-r1", 0.5), ("lora-r8", 0.5), ("lora2-k1", 0.25),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"lora": [0.1]}}, "learning rates for lora2"),
        ({"grid": {**TINY["grid"], "sora": [0.1]}}, "grid = 'sora'"),
        ({"grid": {**TINY["grid"], "lora": []}}, "grid.lora"),
        ({"grid": {**TINY["grid"], "lora": [-1.0]}}, "grid.lora.0"),
        ({"holdout": {}}, "rows for mrpc"),
        ({"rows": ["lora_r1"]}, "did you mean lora-r1"),
        ({"tasks": ["mrcp"]}, "tasks.0"),
        ({"select": "methods"}, "select"),
        ({"select_rows": {"lora": ["lora2-k1"]}}, "allowed: lora-r1"),
        ({"select": "row", "select_rows": {"lora": ["lora-r1"]}}, "select: method"),
        ({"tables": [{"table": "3", "rate_of": "lora2-k2"}]}, "did you mean lora2-k1"),
        ({"tables": [{"table": "3"}]}, "rate_of"),
        ({"tables": [{"table": "2", "rate_of": "lora2-k1"}]}, "table"),
        ({"seed": [1]}, "unknown key"),
    ],
)
def test_a_wrong_study_file_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_study("tiny", configs(tmp_path, **changes))


@pytest.mark.parametrize(
    ("words", "key", "allowed"),
    [
        ([], "study", "paper, small, small-cpu"),
        (["study=smal"], "study", "did you mean small"),
        (["study=tiny", "only=final", "rows=lora-r9"], "rows", "did you mean lora-r1?"),
        (["study=tiny", "rows=lora-r1"], "rows", "only=final"),
        (["study=tiny", "only=finl"], "only", "did you mean final?"),
        (["study=tiny", "train.learning_rate=1"], "train.learning_rate", "grid"),
        (["study=tiny", "data.holdout=9"], "data.holdout", "holdout"),
        (["study=tiny", "backbone=minilm"], "backbone", "profile"),
        (["study=tiny", "train.max_steps=2"], "train.max_steps", "results.dir=DIR"),
        (["study=tiny", "workers=0"], "workers", "at least 1"),
        (["study=tiny", "plan=yes"], "plan", "true or false"),
        (["study=tiny", "--fast"], "command line", "key=value"),
    ],
)
def test_wrong_words_are_refused(tmp_path, words, key, allowed):
    known = configs(tmp_path) if any("tiny" in word for word in words) else CONFIGS
    with pytest.raises(ConfigError) as error:
        parse_study(words, known)
    found = {problem.key: problem.allowed for problem in error.value.problems}
    assert allowed in found[key]


def test_a_plan_names_every_run_and_trains_none(tmp_path, begun, monkeypatch, capsys):
    from lora2.experiment import plan as costs

    monkeypatch.setattr(
        costs,
        "measure",
        lambda jobs, tell: {costs.key_of(j): costs.Cost(1.0, 1, 1.0, True) for j in jobs},
    )
    assert do(tmp_path, "plan=true") == 0
    shown = capsys.readouterr().out
    assert "4 of 4 runs to do, 16 steps" in shown and "5 of 5 runs to do, 20 steps" in shown
    assert "in all 9 runs, 36 steps" in shown
    assert begun == [] and not (tmp_path / "out").exists()


def test_the_script_refuses_without_a_traceback(capsys):
    study = script("study")
    assert study.main(["study=nothing"]) == 2 and "allowed: paper" in capsys.readouterr().err
    assert study.main([]) == 2 and study.main(["--help"]) == 0
