from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora2.config.parse import options
from lora2.study import page
from lora2.study.page import answer, budget_curve, equivalence
from lora2.study.select import Choice, collect, read
from lora2.study.spec import Question, load_study
from tests.study.synthetic_study import record, small_study

ASK = [Question(ask="Is it?", pairs=[["lora2-k8", "lora-r8"]])]


def scores_of(first, second, part="cola-100"):
    """scores.csv of two rows of one part, a value a seed."""
    lines = [
        {"part": part, "row": row, "task": "cola", "steps": int(part[5:]), "seed": seed,
         "learning_rate": 1e-3, "run": f"{row}-{seed}", "score_best": value + 1, "step_best": 1,
         "score_last": value, "params_adapter": 10, "params_kept": 10, "train_seconds": 1.0}
        for row, values in (("lora2-k8", first), ("lora-r8", second))
        for seed, value in enumerate(values, 1)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def last(first, second):
    answers = answer(small_study(questions=ASK), scores_of(first, second))
    return answers.loc[answers["score"] == "last"].iloc[0]


def test_a_difference_has_the_interval_and_the_p_of_a_paired_t_test():
    a, b = [20.0, 22.0, 21.0, 25.0], [18.0, 21.0, 18.5, 21.0]
    line, reference = last(a, b), stats.ttest_rel(a, b)
    assert line["p"] == pytest.approx(reference.pvalue)
    assert (line["low"], line["high"]) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert line["difference"] == pytest.approx(np.mean(a) - np.mean(b)) and line["seeds"] == 4


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        ([30.0, 31.2, 30.5], "higher"),
        ([10.0, 11.2, 10.5], "lower"),
        ([20.1, 20.9, 20.6], "equivalent"),
        ([21.0, 22.0, 21.5001], "higher, within the margin"),
        ([15.0, 29.0, 21.0], "cannot tell"),
    ],
)
def test_the_verdict_follows_from_both_tests(first, verdict):
    assert last(first, [20.0, 21.0, 20.5])["verdict"] == verdict


def test_equivalence_is_the_larger_of_two_one_sided_tests():
    values = np.array([0.5, 1.0, -0.2, 0.4])
    p = max(
        stats.ttest_1samp(values, -3.0, alternative="greater").pvalue,
        stats.ttest_1samp(values, 3.0, alternative="less").pvalue,
    )
    assert equivalence(values, 3.0) == pytest.approx(p)


def test_what_could_have_been_seen_is_found_with_that_power():
    line = last([20.0, 22.0, 21.0, 25.0], [18.0, 21.0, 18.5, 21.0])
    error = (line["high"] - line["difference"]) / stats.t.ppf(0.975, 3)
    shift = stats.nct(3, line["could_have_seen"] / error)
    assert shift.sf(stats.t.ppf(0.975, 3)) == pytest.approx(0.8, abs=1e-6)


def test_lines_of_one_question_are_corrected_together_and_one_seed_gives_none():
    study = small_study(questions=ASK)
    two = [scores_of([24.0, 22.0, 23.5], [20.0, 21.0, 20.5], part) for part in
           ("cola-100", "cola-200")]  # fmt: skip
    answers = answer(study, pd.concat(two))
    answers = answers.loc[answers["score"] == "last"]
    assert len(answers) == 2 and (answers["p_holm"] >= 2 * answers["p"].min() - 1e-12).all()
    assert answer(study, scores_of([1.0], [2.0])).empty


def test_parts_of_one_budget_are_compared_together_and_a_run_counts_once():
    study = small_study(questions=ASK)
    other = dataclasses.replace(study.parts[0], name="cola-more")
    study = dataclasses.replace(study, parts=[study.parts[0], other])
    scores = scores_of([24.0, 22.0, 23.5], [20.0, 21.0, 20.5])
    split = scores.assign(part=["cola-100"] * 3 + ["cola-more"] * 3)  # the rows in two parts
    again = pd.concat([split, split.head(3).assign(part="cola-more")])  # and one in both
    (line,) = (answers := answer(study, again)).loc[answers["score"] == "last"].to_dict("records")
    alone = answer(study, scores)
    assert line["seeds"] == 3
    assert line == alone.loc[alone["score"] == "last"].iloc[0].to_dict()


@pytest.mark.parametrize(
    ("gap", "higher", "not_lower"),
    [
        ([5.0, 5.2, 5.5], "holds here", "holds here"),
        ([1.0, 1.2, 1.1], "holds here", "holds here"),  # by less than the margin
        ([0.3, -0.2, 0.4], "undecided", "holds here"),  # equivalent: neither above nor below
        ([-1.0, -1.2, -1.1], "does not hold here", "holds here"),  # lower, within the margin
        ([-5.0, -5.2, -5.5], "does not hold here", "does not hold here"),
        ([-9.0, 9.0, 1.0], "undecided", "undecided"),
    ],
)
def test_a_claim_holds_by_its_own_rule(gap, higher, not_lower):
    """Of two claims on the same rows: above LoRA r=8, and comparable to it."""
    base = [20.0, 21.0, 20.5]
    scores = scores_of([a + b for a, b in zip(base, gap, strict=True)], base, "cola-200")
    scores["row"] = scores["row"].replace("lora2-k8", "lora2-k1-published")
    short = scores.assign(part="cola-100", steps=100, score_last=[1.0, 9.0, 2.0, 0.0, 0.0, 0.0])
    both = pd.concat([scores, short])  # a shorter budget changes no verdict
    for runs in (scores, both):
        found = page.claims(small_study(), runs).set_index("id")["holds"]
        assert (found["k1-over-r8"], found["comparable-k1"]) == (higher, not_lower)
        assert set(found.drop(["k1-over-r8", "comparable-k1"])) == {"not run"}


def choices(study, rate=1e-3):
    tried = pd.DataFrame({"part": ["p"], "row": ["r"], "learning_rate": [rate], "chosen": [True]})
    return [
        Choice(part, row, rate, tried.assign(part=part.name, row=row))
        for part in study.parts
        for row in part.rows
    ]


@pytest.fixture
def collected(tmp_path):
    study = small_study(questions=ASK)
    chosen = choices(study)
    extra = [f"results.dir={tmp_path}"]
    record(tmp_path / "selection", [study.candidate(study.parts[0], "lora-r8", 1e-3, extra)],
           lambda job: 1.0)  # fmt: skip
    jobs = [
        study.job(choice.part, choice.row, choice.rate, seed, extra)
        for choice in chosen
        for seed in (1, 2)
    ]

    def score(job):  # LoRA2 is 0.1 above LoRA with seed 1, 0.2 with seed 2
        seed = job.resolved.config.seed
        return 20 + seed * (1.1 if job.row == "lora2-k8" else 1.0)

    record(tmp_path, jobs, score)
    collect(study, chosen, tmp_path, extra)
    return study, chosen, extra, tmp_path


def test_collecting_again_without_run_folders_changes_no_byte(collected):
    study, chosen, extra, folder = collected
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert set(before) == {"runs.csv", "rates.csv", "scores.csv", "curves.csv"}
    collect(study, chosen, folder, extra)
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before
    collect(study, [choice for choice in chosen if choice.part.steps == 100], folder, extra)
    assert len(read(folder, "scores")) == 8  # the other part's lines stay
    one_seed = [choice._replace(part=dataclasses.replace(choice.part, seeds=[1]))
                for choice in chosen]  # fmt: skip
    collect(study, one_seed, folder, extra)
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before


def test_the_page_says_what_was_answered_and_what_was_not_run(collected, monkeypatch):
    study, _, _, folder = collected
    monkeypatch.setattr(page, "ROOT", folder.parent)
    other = read(folder, "scores").assign(part="of another study", steps=9000)
    pd.concat([read(folder, "scores"), other]).to_csv(folder / "scores.csv", index=False)
    results = page.load(study, folder)
    text = page.page(results)
    assert "**Is it?** LoRA² k=8 compared with LoRA r=8, 200 steps: equivalent within 3" in text
    assert "* cola-200 (200 steps): all rows (seeds 3)" in text and "not run" in text
    assert page.headline(results).count("* ") == 1
    one_seed = results.scores.loc[results.scores["seed"] == 1]
    assert "| 21.0 | 21.0 | 1 |" in page.page(
        page.Results(study, folder, one_seed, results.answers)
    )
    fewer = page.Results(study, folder, results.scores.head(4), results.answers)
    assert "* cola-200 (200 steps): all rows" in page.page(fewer)
    whole = dataclasses.replace(
        study, parts=[dataclasses.replace(part, seeds=[1, 2]) for part in study.parts]
    )
    whole_results = page.Results(whole, folder, results.scores, results.answers)
    assert "Nothing: every part" in page.page(whole_results)
    fewer = page.Results(whole, folder, results.scores.iloc[:-1], results.answers)
    assert "2 planned, 1 complete, 1 begun" in page.page(fewer)
    assert "* cola-200 (200 steps): lora2-k8 (seeds 2)" in page.page(fewer)
    curve = budget_curve(study, results.scores, "cola")
    assert len(curve.axes[0].containers) == 2


@pytest.mark.parametrize("name", options("study"))
def test_every_study_has_a_page_and_questions(name, collected, monkeypatch):
    folder, study = collected[-1], load_study(name)
    part = max(study.parts, key=lambda part: part.steps)
    scores = read(folder, "scores").assign(part=part.name, task=part.task, steps=part.steps)
    scores.drop_duplicates(["row", "seed"]).to_csv(folder / "scores.csv", index=False)
    monkeypatch.setattr(page, "ROOT", folder.parent)
    text = page.page(page.load(study, folder))
    assert "* **Does LoRA² k=8 reach LoRA r=8?** LoRA² k=8 compared with" in text


def test_a_wrong_study_and_a_folder_elsewhere_are_refused_in_words(tmp_path, capsys):
    assert page.main(["smal", "results/small"]) == 1
    assert "did you mean small" in capsys.readouterr().err
    assert page.main(["small", str(tmp_path)]) == 1
    assert "move it into" in capsys.readouterr().err


def test_the_committed_page_and_answers_are_those_of_the_committed_csvs():
    assert page.main(["small-cpu", "results/small", "--check"]) == 0
