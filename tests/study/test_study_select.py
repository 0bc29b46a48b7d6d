from __future__ import annotations

import pandas as pd
import pytest

from lora2.records.store import SchemaError
from lora2.study.select import SelectionError, left, read, select
from tests.study.synthetic_study import record, small_study
from tests.sweep.test_request import script


def rate_of(job):
    return job.resolved.config.train.learning_rate


def choose(study, folder, score, rows=("lora-r8",)):
    """Select with runs that end with ``score``; return the choices and all rates run, in order."""
    run = []

    def sweep(jobs):
        missing = left(jobs, folder)
        record(folder, missing, score)
        run.extend(rate_of(job) for job in missing)
        return 0

    words = [f"results.dir={folder}"]
    return select(study, study.parts[0], list(rows), folder, words, sweep), run


def test_the_best_rate_of_three_is_taken_when_it_is_the_middle_one(tmp_path):
    study = small_study(rates={"lora-r8": 1e-3})
    (choice,), run = choose(study, tmp_path, lambda job: 9.0 if rate_of(job) == 1e-3 else 1.0)
    assert choice.rate == 1e-3 and sorted(run) == [5e-4, 1e-3, 2e-3]
    assert choice.tried["chosen"].tolist() == [False, True, False]


@pytest.mark.parametrize("best", [6.25e-5, 1.6e-2])
def test_the_grid_grows_until_the_best_rate_is_inside(tmp_path, best):
    study = small_study(rates={"lora-r8": 1e-3})
    (choice,), run = choose(study, tmp_path, lambda job: -abs(rate_of(job) - best))
    assert choice.rate == best
    assert min(run) < best < max(run)
    assert len(run) == len(set(run))  # no rate is run twice


def test_of_equal_scores_the_middle_rate_wins(tmp_path):
    study = small_study(rates={"lora-r8": 1e-3})
    (choice,), run = choose(study, tmp_path, lambda job: 0.0)
    assert choice.rate == 1e-3 and len(run) == 3
    (choice,), run = choose(study, tmp_path / "b", lambda job: 5.0 if rate_of(job) < 2e-3 else 1.0)
    assert choice.rate == 5e-4 and sorted(run) == [2.5e-4, 5e-4, 1e-3, 2e-3]


def test_a_best_rate_that_stays_an_end_is_refused_with_the_file_to_change(tmp_path):
    study = small_study(rates={"lora-r8": 1e-3})
    tried = r"9 rates from 0.0005 to 0.128 .* another rate .* configs/study/small-cpu.yaml"
    with pytest.raises(SelectionError, match=tried):
        choose(study, tmp_path, rate_of)


def test_a_diverged_rate_is_never_chosen_and_all_diverged_is_refused(tmp_path):
    study = small_study(rates={"lora-r8": 1e-3})
    scores = {1e-3: "diverged", 2e-3: "diverged", 5e-4: 3.0, 2.5e-4: 1.0}
    (choice,), _ = choose(study, tmp_path, lambda job: scores[rate_of(job)])
    assert choice.rate == 5e-4
    with pytest.raises(SelectionError, match="every rate of lora-r8 diverged"):
        choose(study, tmp_path / "other", lambda job: "diverged")


def test_rows_have_rates_of_their_own_and_grow_apart(tmp_path):
    study = small_study(rates={"lora-r8": 1e-3, "lora2-k8": 1e-3})
    best = {"lora": 4e-3, "lora2": 1e-3}

    def score(job):
        return -abs(rate_of(job) - best[job.resolved.config.method.name])

    choices, _ = choose(study, tmp_path, score, ["lora-r8", "lora2-k8"])
    assert {choice.row: choice.rate for choice in choices} == {"lora-r8": 4e-3, "lora2-k8": 1e-3}


def test_a_candidate_is_scored_on_rows_held_out_with_a_seed_of_its_own():
    study = small_study(rates={"lora-r8": 1e-3})
    config = study.candidate(study.parts[0], "lora-r8", 1e-3).resolved.config
    assert config.data.holdout == study.holdout["cola"] and config.seed == study.selection_seed
    assert study.job(study.parts[0], "lora-r8", 1e-3, 1).resolved.config.data.holdout is None


def test_a_run_of_runs_csv_counts_as_done_though_its_folder_is_gone(tmp_path):
    study = small_study()
    words = ["train.eval_batch_size=7", f"results.dir={tmp_path}"]  # a place, no setting
    there = study.job(study.parts[0], "lora-r8", 1e-3, 1, words)
    here = study.job(study.parts[0], "lora-r8", 1e-3, 1, [f"results.dir={tmp_path}"])
    record(tmp_path, [there], lambda job: 1.0)
    assert there.name != here.name and left([here, there], tmp_path) == []
    other = study.job(study.parts[0], "lora-r8", 2e-3, 1, [f"results.dir={tmp_path}"])
    assert left([other, other], tmp_path) == [other]
    table = tmp_path / "runs.csv"
    pd.read_csv(table).assign(schema=2).to_csv(table, index=False)
    with pytest.raises(SchemaError, match="schema 2"):  # not: nothing has been run
        left([there], tmp_path)


def test_a_failed_run_is_done_again(tmp_path):
    study = small_study()
    job = study.job(study.parts[0], "lora-r8", 1e-3, 1, [f"results.dir={tmp_path}"])
    record(tmp_path, [job], lambda job: "failed")
    assert left([job], tmp_path) == [job]


def test_a_selection_alone_leaves_its_rates_in_a_new_folder(tmp_path, monkeypatch):
    study, words = script("study"), ["study=small-cpu", "parts=cola-250", "rows=lora-r8"]

    def sweep_here(jobs, *_):
        folder = tmp_path / "selection"
        record(folder, jobs, lambda job: 1.0)
        return [None] * len(jobs)

    monkeypatch.setattr(study, "sweep_here", sweep_here)
    monkeypatch.setattr(study, "summary", lambda *_: 0)
    assert study.main([*words, "only=selection", f"results.dir={tmp_path}"]) == 0
    assert read(tmp_path, "rates")["chosen"].tolist() == [False, True, False]
    assert read(tmp_path, "scores").empty


@pytest.mark.parametrize(("only", "code", "parts"), [("tables", 0, 2), ("final", 1, 1)])
def test_tables_alone_pass_over_parts_that_were_not_run(tmp_path, only, code, parts, capsys):
    words = ["study=small-cpu", f"only={only}", "parts=cola-250,cola-1000", "rows=lora-r8"]
    assert script("study").main([*words, f"results.dir={tmp_path}"]) == code
    assert capsys.readouterr().err.count("some selection runs failed or are missing") == parts
