"""What a study's differences say: the verdicts, the interval, and what could have been seen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from lora2.experiment.study import load_study
from lora2.report.study_data import Results
from lora2.report.study_gaps import (
    IDLE,
    LARGER,
    SMALLER,
    UNKNOWN,
    Gap,
    Pair,
    corrected,
    gaps,
    overall,
    smallest,
)

PAIR = Pair("1", "ours", "theirs")


def results(scores: dict[tuple[str, str], list[float]], idle=(), overlap=()) -> Results:
    """A study of rows and tasks, each with its scores of seeds 1, 2, ...; NaN: not finished."""
    lines = [
        {"table": "1", "row": row, "label": row, "task": task, "seed": seed, "score_best": score,
         "status": "missing" if math.isnan(score) else "finished", "idle": (row, task) in idle,
         "overlap": task in overlap, "data_marks": ""}
        for (row, task), values in scores.items() for seed, score in enumerate(values, 1)
    ]  # fmt: skip
    none = pd.DataFrame()
    return Results("small", load_study("small-cpu"), none, pd.DataFrame(lines), none, {})


def one(ours: list[float], theirs: list[float], **more) -> Gap:
    found = gaps(results({("ours", "mrpc"): ours, ("theirs", "mrpc"): theirs}, **more), [PAIR])
    assert len(found) == 1
    return found[0]


def test_a_clear_lead_is_larger_and_its_mirror_smaller():
    lead = one([71.0, 72.1, 73.0], [68.0, 69.0, 70.1])
    assert lead.verdict == LARGER and lead.mean == pytest.approx(3.0)
    assert one([68.0, 69.0, 70.1], [71.0, 72.1, 73.0]).verdict == SMALLER


def test_a_lead_within_the_noise_cannot_be_told():
    gap = one([71.0, 75.0, 69.0], [70.0, 70.0, 70.0])
    assert gap.mean > 0 and gap.low < 0 < gap.high and gap.verdict == UNKNOWN


def test_the_interval_and_p_are_those_of_the_paired_t_test():
    ours, theirs = [71.0, 75.0, 70.5], [70.0, 71.0, 69.0]
    gap = one(ours, theirs)
    expected = scipy_stats.ttest_rel(ours, theirs)
    assert gap.p == pytest.approx(expected.pvalue)
    assert (gap.low, gap.high) == pytest.approx(expected.confidence_interval(0.95))


@pytest.mark.parametrize("who", [("ours",), ("theirs",), ("ours", "theirs")])
def test_a_line_did_not_start_where_neither_row_left_the_majority_class(who):
    gap = one([71.0, 72.1, 73.0], [68.0, 69.0, 70.1], idle={(row, "mrpc") for row in who})
    assert (gap.first_idle, gap.second_idle) == ("ours" in who, "theirs" in who)
    assert gap.idle == (len(who) == 2)
    assert gap.verdict == (IDLE if gap.idle else LARGER)
    assert (gap.against_spread == IDLE) == gap.idle


def test_what_a_first_evaluation_says_needs_a_row_that_has_risen_by_then():
    study = results({("ours", "cola"): [20.0, 21.0], ("theirs", "cola"): [10.0, 12.0]})
    for first, verdict in (([0.0, 1.0], IDLE), ([0.0, 9.0], UNKNOWN)):
        runs = study.runs.assign(score_first=[*first, 0.0, 0.0])
        (gap,) = gaps(dataclasses.replace(study, runs=runs), [PAIR], "score_first")
        assert gap.verdict == verdict and gap.mean == sum(first) / 2


def test_one_seed_and_equal_differences_cannot_be_told():
    single = one([75.0], [70.0])
    assert single.verdict == UNKNOWN and math.isnan(single.low) and math.isnan(single.smallest)
    equal = one([75.0, 76.0, 77.0], [70.0, 71.0, 72.0])
    assert equal.verdict == UNKNOWN and math.isnan(equal.smallest)
    right = [100 * count / 408 for count in (310, 300, 301)]  # the differences differ in rounding
    rounded = one(right, [100 * count / 408 for count in (308, 298, 299)])
    assert rounded.verdict == UNKNOWN and math.isnan(rounded.p)


def test_only_the_seeds_that_both_finished_are_paired():
    gap = one([71.0, math.nan, 73.0, 60.0], [70.0, 50.0, 71.0, math.nan])
    assert gap.n == 2 and gap.mean == pytest.approx(1.5)


def test_p_is_corrected_over_the_lines_that_started():
    gap = one([71.0, 72.1, 73.0], [68.0, 69.0, 70.1])
    weak = [gap.__class__(**{**vars(gap), "p": p}) for p in (0.03, 0.04)]
    assert [g.p_holm for g in corrected(weak)] == pytest.approx([0.06, 0.06])
    asleep = gap.__class__(**{**vars(weak[1]), "idle": True})
    alone = corrected([weak[0], asleep])
    assert alone[0].p_holm == 0.03 and alone[0].verdict == LARGER and alone[1].verdict == IDLE


def test_what_could_have_been_seen_is_what_the_corrected_test_could():
    gap = one([71.0, 75.0, 70.5], [70.0, 71.0, 69.0])
    assert gap.smallest == smallest(gap.std, 3)
    two = corrected([gap, gap])
    assert two[0].smallest == smallest(gap.std, 3, alpha=0.025) > 1.3 * gap.smallest


def test_the_average_leaves_out_what_the_encoder_was_trained_on():
    scores = {("ours", t): [base + 2.0, base + 3.1] for t, base in (("mrpc", 70), ("cola", 30))}
    scores |= {("theirs", t): [base, base + 1] for t, base in (("mrpc", 70), ("cola", 30))}
    scores |= {("ours", "rte"): [90.0, 95.0], ("theirs", "rte"): [50.0, 51.0]}
    found = gaps(results(scores, overlap=("rte",)), [PAIR])
    assert [gap.task for gap in found] == ["mrpc", "cola", "rte", "average"]
    assert found[-1].mean == pytest.approx(2.05) and overall(found, PAIR) == [found[-1]]


def test_without_its_average_a_pair_is_judged_by_the_tasks_that_started():
    scores = {(row, t): [70.0, 71.5] for row in ("ours", "theirs") for t in ("mrpc", "cola")}
    found = gaps(results(scores, idle={("ours", "cola"), ("theirs", "cola")}), [PAIR])
    assert [gap.task for gap in overall(found, PAIR)] == ["mrpc"]
    assert found[-1].task == "average" and found[-1].verdict == IDLE
    # Another row on each task: on both tasks one has risen.
    found = gaps(results(scores, idle={("ours", "cola"), ("theirs", "mrpc")}), [PAIR])
    assert [gap.task for gap in overall(found, PAIR)] == ["average"] and found[-1].first_idle


def test_a_row_that_is_not_in_the_study_gives_no_line():
    assert gaps(results({("ours", "mrpc"): [70.0]}), [PAIR]) == []


@pytest.mark.parametrize(
    ("theirs", "word"),
    [([60.0, 61.1, 62.0], "gain larger"), ([80.0, 81.1, 82.0], "loss larger"),
     ([70.0, 71.01, 72.01], SMALLER), ([69.9, 69.0, 73.0], UNKNOWN)],
)  # fmt: skip
def test_a_difference_is_set_against_the_spread_over_seeds(theirs, word):
    assert one([70.0, 71.0, 72.0], theirs).against_spread == word


def test_the_spread_is_pooled_over_both_rows():
    gap = one([70.0, 71.0, 72.0], [60.0, 63.0, 66.0])
    assert gap.spread == pytest.approx(math.sqrt((1 + 9) / 2))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_smallest_difference_is_found_in_80_percent_of_simulated_studies(n):
    shift = smallest(2.0, n)
    drawn = np.random.default_rng(0).normal(shift, 2.0, size=(40_000, n))
    found = scipy_stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.80, abs=0.01)


def test_the_smallest_difference_of_many_seeds_is_the_normal_one():
    normal = (1.959964 + 0.841621) / math.sqrt(2000)
    assert smallest(1.0, 2000) == pytest.approx(normal, rel=2e-3)
    assert smallest(3.0, 2000) == pytest.approx(3 * normal, rel=2e-3)
    assert math.isnan(smallest(1.0, 1)) and smallest(0.0, 3) == 0
