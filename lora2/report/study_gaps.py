"""The difference between two rows of a study, paired by seed, and what it can and cannot tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize
from scipy import stats as scipy_stats

from lora2.report import stats
from lora2.report.study_data import Results, risen
from lora2.report.tables import AVERAGE

ALPHA, POWER = 0.05, 0.80
EQUAL = 1e-9  # percent points; differences that vary by less are one
LARGER, SMALLER, UNKNOWN, IDLE = "larger", "smaller", "cannot tell", "did not start"
RULE = (
    "The difference is the first row's score minus the second's, in percent points, its mean over "
    "the seeds that both have; the interval is the 95 % t-interval of the differences paired by "
    "seed, p the paired t-test's, corrected by Holm's rule over the lines of one question (the "
    "interval is not). *Larger* or *smaller*: corrected p below 5 %. *Cannot tell*: any other. "
    "*Did not start*: neither row rose above the majority class: on every seed its best score is "
    "at most one standard error (over validation rows) above the score of giving all examples that "
    "class. Such a line judges nothing. Where one of the two rows rose and the other did not, the "
    "line is judged as any other, and the other row is named. *Could have seen*: the smallest true "
    "difference that a two-sided t-test finds in 80 % of studies with this many seeds and this "
    "spread of differences (noncentral t), at 5 % divided by the number of lines corrected "
    "together. Average: over the tasks whose data the encoder was not trained on."
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two rows of one table, by id: the first's score minus the second's is looked at."""

    table: str
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class Gap:
    """One line: a pair on one task, or on the average of several.

    ``std``: of the differences; ``spread``: the standard deviation over seeds within a row, pooled
    over the two; ``first_idle`` and ``second_idle``: the row did not rise above the majority class
    on a task; ``idle``: both did not, on the same. ``smallest``: what this many seeds could have
    seen, once p is corrected. Percent points; NaN where there are too few seeds.
    """

    pair: Pair
    task: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    std: float
    spread: float
    first_idle: bool = False
    second_idle: bool = False
    idle: bool = False
    p_holm: float = math.nan
    smallest: float = math.nan

    @property
    def verdict(self) -> str:
        """By ``RULE``."""
        if self.idle:
            return IDLE
        if not self.p_holm < ALPHA:
            return UNKNOWN
        return LARGER if self.mean > 0 else SMALLER

    @property
    def against_spread(self) -> str:
        """Whether the difference is larger than the seeds' spread.

        A gain or loss larger: its whole interval lies beyond one spread above or below 0; smaller:
        within one spread on both sides; else it cannot be told.
        """
        if self.idle:
            return IDLE
        if self.low > self.spread or self.high < -self.spread:
            return f"{'gain' if self.mean > 0 else 'loss'} {LARGER}"
        return SMALLER if max(abs(self.low), abs(self.high)) < self.spread else UNKNOWN


def smallest(std: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true mean that a two-sided one-sample t-test finds with probability ``power``.

    ``std`` is the standard deviation of the n values, in whose unit the answer is. The statistic
    follows a noncentral t, its square the noncentral F that is used here: both tails at once. NaN
    for fewer than two values.
    """
    if n < 2 or not math.isfinite(std):
        return math.nan
    edge = float(scipy_stats.t.ppf(1 - alpha / 2, n - 1))

    def short(shift: float) -> float:
        return float(scipy_stats.ncf.sf(edge**2, 1, n - 1, shift**2)) - power

    return std / math.sqrt(n) * float(optimize.brentq(short, 0, 2 * edge + 5))


def gaps(results: Results, pairs: Sequence[Pair], score: str = "score_best") -> list[Gap]:
    """A line per pair and task, and per average where a pair has several clean tasks.

    Pairs of which a row is not in the study are left out. p is corrected over all lines returned.
    """
    lines = []
    for pair in pairs:
        rows = results.rows(pair.table)
        if pair.first not in rows or pair.second not in rows:
            continue
        columns = {task: differences(results, pair, task, score) for task in _tasks(results, pair)}
        lines += [
            _gap(results, pair, task, (task,), column, score) for task, column in columns.items()
        ]
        clean = [task for task in results.clean(pair.table) if task in columns]
        if len(clean) > 1:
            mean = pd.DataFrame({task: columns[task] for task in clean}).mean(axis=1, skipna=False)
            lines.append(_gap(results, pair, AVERAGE, clean, mean.dropna(), score))
    return corrected(lines)


def corrected(lines: Sequence[Gap]) -> list[Gap]:
    """The lines with p corrected by Holm's rule over them, those that did not start left out.

    Holm's rule asks of the smallest p what Bonferroni's does, and so does ``smallest``.
    """
    p_values = [math.nan if one.idle else one.p for one in lines]
    tested = max(1, sum(math.isfinite(p) for p in p_values))
    return [
        dataclasses.replace(one, p_holm=p, smallest=smallest(one.std, one.n, ALPHA / tested))
        for one, p in zip(lines, stats.holm(p_values), strict=True)
    ]


def _tasks(results: Results, pair: Pair) -> list[str]:
    """The tasks on which both rows have a run."""
    return [
        task
        for task in results.tasks(pair.table)
        if len(results.cell(pair.table, pair.first, task))
        and len(results.cell(pair.table, pair.second, task))
    ]


def differences(results: Results, pair: Pair, task: str, score: str = "score_best") -> pd.Series:
    """First minus second by seed, over the seeds that both finished; percent points."""
    first, second = (
        results.cell(pair.table, row, task)[score].astype(float)
        for row in (pair.first, pair.second)
    )
    return (first - second).dropna()


def _gap(
    results: Results, pair: Pair, task: str, tasks: Sequence[str], column: pd.Series, score: str
) -> Gap:
    shown = stats.summary(column.to_numpy())
    # Of equal differences the test has no spread to judge by; they may differ in rounding.
    std = shown.std if shown.std > EQUAL else math.nan
    p = float(scipy_stats.ttest_1samp(column, 0.0).pvalue) if math.isfinite(std) else math.nan
    asleep = [
        [_asleep(results, pair.table, row, one, score) for one in tasks]
        for row in (pair.first, pair.second)
    ]
    return Gap(
        pair=pair,
        task=task,
        n=shown.n,
        mean=shown.mean,
        low=shown.low,
        high=shown.high,
        p=p,
        std=std,
        spread=_spread(results, pair, tasks, list(column.index)),
        first_idle=any(asleep[0]),
        second_idle=any(asleep[1]),
        idle=any(map(all, zip(*asleep, strict=True))),
    )


def _asleep(results: Results, table: str, row: str, task: str, score: str) -> bool:
    """Whether no seed's ``score`` is above the majority class."""
    if score == "score_best":
        return results.idle(table, row, task)
    bound, own = risen(task), results.cell(table, row, task)[score].astype(float)
    return bound is not None and bool((own <= bound).all())


def _spread(results: Results, pair: Pair, tasks: Sequence[str], seeds: Sequence[int]) -> float:
    """The rows' standard deviations over seeds (of their mean over tasks), pooled."""
    if len(seeds) < 2:
        return math.nan
    variances = []
    for row in (pair.first, pair.second):
        own = [results.cell(pair.table, row, t)["score_best"].astype(float)[seeds] for t in tasks]
        variances.append(float(np.var(sum(own) / len(own), ddof=1)))
    return math.sqrt(sum(variances) / 2)


def overall(lines: Sequence[Gap], pair: Pair) -> list[Gap]:
    """What a pair is judged by: its average, else the tasks on which a row of it started."""
    own = [one for one in lines if one.pair == pair and not one.idle]
    average = [one for one in own if one.task == AVERAGE]
    return average or own
