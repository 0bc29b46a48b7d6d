"""Intervals and tests against known values and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score, matthews_corrcoef

from lora2.tables import stats


def test_summary_golden() -> None:
    # 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), t(0.975, 3) = 3.18245.
    got = stats.summary([1, 2, 3, 4])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert got == pytest.approx((4, 2.5, math.sqrt(5 / 3), 2.5 - half, 2.5 + half), rel=1e-6)


def test_summary_of_one_and_of_none() -> None:
    one, none = stats.summary([0.5]), stats.summary([])
    assert one[:2] == (1, 0.5) and all(math.isnan(x) for x in one[2:])
    assert none.n == 0 and math.isnan(none.mean)
    with pytest.raises(ValueError, match="finite"):
        stats.summary([0.5, math.nan])


def test_few_seeds_take_the_paired_t_test() -> None:
    a, b = np.array([0.81, 0.84, 0.80, 0.86]), np.array([0.80, 0.80, 0.79, 0.83])
    got = stats.by_seed(a - b)
    assert got.name == "paired t (n=4)"
    assert got.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue)


def test_six_seeds_take_the_exact_permutation_test() -> None:
    got = stats.by_seed([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert got.name == "sign-flip permutation (n=6)"
    assert got.p == pytest.approx(2 / 2**6)  # only all-plus and all-minus are as extreme


def test_seed_tests_that_cannot_be_made() -> None:
    assert math.isnan(stats.by_seed([0.3]).p) and stats.by_seed([0.3]).name == "none (n=1)"
    assert stats.by_seed([0.0, 0.0]).p == 1.0
    assert math.isnan(stats.by_seed([0.1, 0.1]).p)


def test_mcnemar_golden() -> None:
    # 8 examples only the first gets right, 1 only the second: 2 (1 + 9) / 2^9.
    first = np.array([True] * 8 + [False] + [True] * 20)
    second = np.array([False] * 8 + [True] + [True] * 20)
    assert stats.mcnemar(first, second) == pytest.approx(20 / 512)
    assert stats.mcnemar(second, first) == stats.mcnemar(first, second)
    assert stats.mcnemar(first, first) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_statistics_are_the_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, guess = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    a, b = y.astype(float), guess.astype(float)
    assert stats.STATISTICS["matthews_correlation"](a, b) == pytest.approx(
        matthews_corrcoef(y, guess)
    )
    assert stats.STATISTICS["f1"](a, b) == pytest.approx(f1_score(y, guess))
    noise = rng.normal(size=60)
    assert stats.STATISTICS["pearson"](a, noise) == pytest.approx(np.corrcoef(a, noise)[0, 1])


@pytest.mark.parametrize("metric", ["matthews_correlation", "f1", "pearson"])
def test_bootstrap_tells_good_from_random_and_same_from_same(metric: str) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 300)
    good = np.where(rng.random(300) < 0.9, y, 1 - y)
    bad = np.where(rng.random(300) < 0.6, y, 1 - y)
    p = stats.paired_bootstrap(metric, y, good, bad, resamples=500)
    assert p == pytest.approx(2 / 501)  # no resample on the other side
    assert p == stats.paired_bootstrap(metric, y, bad, good, resamples=500)
    assert stats.paired_bootstrap(metric, y, good, good, resamples=200) == 1.0


def test_bootstrap_rarely_rejects_equals_and_is_reproducible() -> None:
    rng = np.random.default_rng(2)
    values = []
    for _ in range(60):
        y = rng.normal(size=80)
        values.append(
            stats.paired_bootstrap(
                "pearson", y, y + rng.normal(size=80), y + rng.normal(size=80), resamples=200
            )
        )
    assert sum(p < 0.05 for p in values) <= 9  # 3 expected
    assert 0.2 < float(np.mean(values)) < 0.8
    y, a, b = np.arange(9.0), np.arange(9.0) ** 2, np.arange(9.0)[::-1] + 1
    same = [stats.paired_bootstrap("pearson", y, a, b, 100) for _ in range(2)]
    assert same[0] == same[1]


def test_constant_predictions_have_no_correlation() -> None:
    assert stats.STATISTICS["pearson"](np.array([0.0, 1.0]), np.array([3.0, 3.0])) == 0.0


def test_merge_golden() -> None:
    assert stats.merge([0.04]) == 0.04
    assert stats.merge([0.5, 0.01, 0.04]) == pytest.approx(3 / 2 * 0.04)
    assert stats.merge([0.9, 0.8, 0.7]) == 1.0
    assert math.isnan(stats.merge([]))


def test_holm_golden() -> None:
    # The textbook example of Holm (1979): 0.01 x 4, 0.013 x 3, then the running maximum.
    assert stats.holm([0.01, 0.04, 0.03, 0.013]) == pytest.approx([0.04, 0.06, 0.06, 0.04])
    got = stats.holm([0.02, math.nan, 0.03])
    assert got[0] == got[2] == pytest.approx(0.04) and math.isnan(got[1])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_between_the_raw_value_and_bonferroni(values: list[float]) -> None:
    got = stats.holm(values)
    for raw, corrected in zip(values, got, strict=True):
        assert raw <= corrected <= min(1.0, len(values) * raw) + 1e-12
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(got)[order]) >= 0).all()
