"""What a study answers: differences paired by seed, tested for difference and for equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lora2.study.spec import Study
from lora2.tables.stats import holm

LEVEL = 0.05
POWER = 0.8
COLUMNS = ["question", "part", "task", "steps", "first", "second", "score", "seeds", "difference",
           "low", "high", "p", "p_holm", "margin", "p_equivalence", "could_have_seen",
           "verdict"]  # fmt: skip


def answer(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return a line for every question, pair of rows and part whose seeds allow a test.

    ``scores``: scores.csv. difference: first minus second in percent points, the mean over the
    seeds that both have; low, high: its 95 % t-interval; p: paired t-test, p_holm: corrected over
    the lines of the question; p_equivalence: the larger of the two one-sided tests against the
    margin of the task (TOST); could_have_seen: the difference that these seeds find with a power
    of 80 %. The last score decides; the best one has lines of its own.
    """
    lines = []
    for question in study.questions:
        for score in ("score_last", "score_best"):
            own = [
                _compare(study, scores, question.ask, part.name, first, second, score)
                for part in study.parts
                for first, second in question.pairs
            ]
            found = [line for line in own if line is not None]
            for line, p in zip(found, holm([line["p"] for line in found]), strict=True):
                lines.append({**line, "p_holm": p, "verdict": _verdict({**line, "p_holm": p})})
    return pd.DataFrame(lines, columns=COLUMNS)


def _compare(
    study: Study, scores: pd.DataFrame, ask: str, part: str, first: str, second: str, score: str
) -> dict | None:
    """Return one line without what needs its question's others; None with fewer than two seeds."""
    own = scores.loc[scores["part"] == part].set_index("seed")
    two = [own.loc[own["row"] == row, score] for row in (first, second)]
    differences = (two[0] - two[1]).dropna().to_numpy(dtype=float)
    n = len(differences)
    if n < 2:
        return None
    line = own.iloc[0]
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * error
    margin = study.margin[line["task"]]
    return {
        "question": ask,
        "part": part,
        "task": line["task"],
        "steps": int(line["steps"]),
        "first": first,
        "second": second,
        "score": score.removeprefix("score_"),
        "seeds": n,
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "p": _p(mean, error, n),
        "margin": margin,
        "p_equivalence": equivalence(differences, margin),
        "could_have_seen": half + stats.t.ppf(POWER, n - 1) * error,
    }


def _p(mean: float, error: float, n: int) -> float:
    """Return the two-sided p-value of the paired t-test; 1 where nothing differs at all."""
    if error < 1e-9:
        return 1.0 if abs(mean) < 1e-9 else math.nan
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))


def equivalence(differences: Sequence[float] | np.ndarray, margin: float) -> float:
    """Return the p-value of two one-sided t-tests (Schuirmann 1987): small if |mean| < margin."""
    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(np.mean(values))
    error = float(values.std(ddof=1)) / math.sqrt(n)
    if error < 1e-9:
        return float(abs(mean) >= margin)
    return float(stats.t.sf((margin - abs(mean)) / error, n - 1))


def _verdict(line: dict) -> str:
    """Return higher, lower or no clear difference, and whether within the margin."""
    tested = not math.isnan(line["p_holm"]) and line["p_holm"] < LEVEL
    same = line["p_equivalence"] < LEVEL
    if tested:
        side = "higher" if line["difference"] > 0 else "lower"
        return f"{side}, within the margin" if same else side
    return "equivalent" if same else "cannot tell"


def sentence(line: pd.Series, labels: dict[str, str]) -> str:
    """Return a comparison in words, with its figures."""
    first, second = labels[line["first"]], labels[line["second"]]
    figures = (
        f"{line['difference']:+.1f} (95 % {line['low']:+.1f} to {line['high']:+.1f}, "
        f"{line['seeds']} seeds)"
    )
    said = {
        "higher": "is higher",
        "lower": "is lower",
        "higher, within the margin": f"is higher, by less than {line['margin']:g}",
        "lower, within the margin": f"is lower, by less than {line['margin']:g}",
        "equivalent": f"is equivalent within {line['margin']:g}",
        "cannot tell": f"cannot tell; {line['could_have_seen']:.1f} could have been seen",
    }[line["verdict"]]
    return f"{first} against {second}, {line['steps']:,} steps: {said}: {figures}"
