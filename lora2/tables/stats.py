"""Compute means over seeds with their intervals, and test two methods against each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Summary(NamedTuple):
    """n values, their mean, standard deviation (n - 1) and 95% t-interval; NaN where undefined."""

    n: int
    mean: float
    std: float
    low: float
    high: float


class Outcome(NamedTuple):
    """A two-sided test: its name, with n, and its p-value (NaN where there is no test)."""

    name: str
    p: float


def summary(values: Sequence[float] | np.ndarray) -> Summary:
    """Describe a cell's scores over seeds, which are finite: no diverged run is averaged in."""
    array = np.asarray(values, dtype=float)
    if not np.isfinite(array).all():
        raise ValueError(f"scores must be finite, not {array.tolist()}")
    n = len(array)
    mean = float(array.mean()) if n else np.nan
    std = float(array.std(ddof=1)) if n > 1 else np.nan
    half = float(stats.t.ppf(0.975, n - 1)) * std / np.sqrt(n) if n > 1 else np.nan
    return Summary(n, mean, std, mean - half, mean + half)


def by_seed(differences: Sequence[float] | np.ndarray) -> Outcome:
    """Test whether differences paired by seed are centred at zero.

    From six seeds on by the exact sign-flip permutation test, which assumes only symmetry. With
    fewer its smallest p (2 / 2^n) is above 5%: then by the paired t-test, which needs two seeds.
    """
    array = np.asarray(differences, dtype=float)
    n = len(array)
    if n < 2:
        return Outcome(f"none (n={n})", np.nan)
    if n >= 6:
        result = stats.permutation_test(
            (array,), np.mean, permutation_type="samples", n_resamples=2**14, rng=0
        )
        name = "sign-flip permutation" if n <= 14 else "sign-flip permutation, sampled"
        return Outcome(f"{name} (n={n})", float(result.pvalue))
    return Outcome(f"paired t (n={n})", paired_t(array))


def paired_t(differences: np.ndarray) -> float:
    """Return the p-value of the paired t-test; of equal differences 1 if they are 0, else NaN."""
    if np.ptp(differences) < 1e-9:  # equal but for rounding
        return 1.0 if abs(differences[0]) < 1e-9 else math.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Return the exact two-sided McNemar p-value; boolean vectors over the same examples, (n,)."""
    only_first, differ = int((first_right & ~second_right).sum()), first_right != second_right
    return float(stats.binomtest(only_first, int(differ.sum())).pvalue) if differ.any() else 1.0


def _pearson(label: np.ndarray, guess: np.ndarray, axis: int = -1) -> np.ndarray:
    # Constant predictions have no correlation; 0, as in the metric of the tables.
    return np.nan_to_num(stats.pearsonr(label, guess, axis=axis).statistic)


def _f1(label: np.ndarray, guess: np.ndarray, axis: int = -1) -> np.ndarray:
    both = (label * guess).sum(axis=axis)
    either = label.sum(axis=axis) + guess.sum(axis=axis)
    return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)


# The Matthews correlation of 0/1 vectors is their Pearson correlation.
STATISTICS = {"matthews_correlation": _pearson, "pearson": _pearson, "f1": _f1}


def paired_bootstrap(
    metric: str, label: np.ndarray, first: np.ndarray, second: np.ndarray, resamples: int = 2000
) -> float:
    """Return the two-sided p-value of equal ``metric`` for two models, by resampling examples.

    ``label``, ``first`` and ``second`` are (n,) over the same examples. The p-value is twice the
    smaller share of resampled differences on either side of zero, the sample itself counted.
    """
    statistic = STATISTICS[metric]

    def difference(y: np.ndarray, a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(y, a, axis) - statistic(y, b, axis)  # (resamples, n) -> (resamples,)

    arrays = tuple(np.asarray(x, dtype=float) for x in (label, first, second))
    with warnings.catch_warnings():  # of constant predictions, and of equal models' interval
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = stats.bootstrap(
            arrays, difference, paired=True, vectorized=True, method="percentile",
            n_resamples=resamples, batch=max(1, 2_000_000 // len(arrays[0])), rng=0,
        ).bootstrap_distribution  # fmt: skip
    below, above = int((drawn <= 0).sum()) + 1, int((drawn >= 0).sum()) + 1
    return min(1.0, 2 * min(below, above) / (resamples + 1))


def merge(p_values: Sequence[float]) -> float:
    """Merge dependent p-values (one per seed, on the same examples) into a valid p-value.

    Rüger (1978): K / j times the j-th smallest of K, here with the median as j.
    """
    if not len(p_values):
        return float("nan")
    middle = (len(p_values) + 1) // 2
    return min(1.0, len(p_values) / middle * float(np.sort(p_values)[middle - 1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction (1979) to a family of p-values; NaN is not counted."""
    array = np.asarray(p_values, dtype=float)
    order = np.argsort(array, kind="stable")[: np.count_nonzero(~np.isnan(array))]  # NaN is last
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(array), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * array[order]))
    return corrected.tolist()
