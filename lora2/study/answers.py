"""Answer a study's questions: seed-paired differences, tested for difference and equivalence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lora2.study.spec import Part, Study
from lora2.tables.stats import holm, summary

LEVEL = 0.05
POWER = 0.8
COLUMNS = ["question", "part", "task", "steps", "first", "second", "score", "seeds", "difference",
           "low", "high", "p", "p_holm", "margin", "p_equivalence", "could_have_seen",
           "verdict"]  # fmt: skip
WORDS = {  # verdict -> its words in a sentence, with the comparison's fields by name
    "higher": "higher",
    "lower": "lower",
    "higher, within the margin": "higher by less than {margin:g}",
    "lower, within the margin": "lower by less than {margin:g}",
    "equivalent": "equivalent within {margin:g}",
    "cannot tell": "undecided",
}


def answer(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return a line for every question, pair of rows and part with two common seeds or more.

    ``scores`` is scores.csv. difference: first minus second in percentage points, the mean over
    common seeds; low, high: its 95 % t-interval; p: paired t-test, p_holm: corrected over the lines
    of the question; p_equivalence: of two one-sided tests against the task's margin;
    could_have_seen: what these seeds detect with a power of 80 %. The best score has lines apart.
    """
    lines = []
    for question in study.questions:
        for score in ("score_last", "score_best"):
            tested = [
                {"question": question.ask, "first": first, "second": second,
                 **_compare(study, part, differences)}
                for part in study.parts
                for first, second in question.pairs
                if len(differences := paired(scores, part, first, second, score)) > 1
            ]  # fmt: skip
            for line, p in zip(tested, holm([line["p"] for line in tested]), strict=True):
                line |= {"score": score.removeprefix("score_"), "p_holm": p}
                lines.append({**line, "verdict": _verdict(line)})
    return pd.DataFrame(lines, columns=COLUMNS)


def paired(scores: pd.DataFrame, part: Part, first: str, second: str, score: str) -> np.ndarray:
    """Return first minus second for each seed that both rows have in a part, (seeds,)."""
    of_part = scores.loc[scores["part"] == part.name].set_index("seed")
    a, b = (of_part.loc[of_part["row"] == row, score] for row in (first, second))
    return (a - b).dropna().to_numpy(dtype=float)


def _compare(study: Study, part: Part, differences: np.ndarray) -> dict:
    """Return the figures of one comparison, except those that depend on the question's others."""
    n, mean, std, low, high = summary(differences)
    margin, error = study.margin[part.task], std / math.sqrt(n)
    constant = error < 1e-9
    p = 2 * stats.t.sf(abs(mean) / error, n - 1) if not constant else math.nan
    p = 1.0 if constant and abs(mean) < 1e-9 else float(p)  # 1: nothing differs at all
    return {"part": part.name, "task": part.task, "steps": part.steps, "seeds": n,
            "difference": mean, "low": low, "high": high, "p": p, "margin": margin,
            "p_equivalence": equivalence(differences, margin),
            "could_have_seen": high - mean + stats.t.ppf(POWER, n - 1) * error}  # fmt: skip


def equivalence(differences: Sequence[float] | np.ndarray, margin: float) -> float:
    """Return the p-value of two one-sided t-tests (Schuirmann 1987): small if |mean| < margin."""
    n, mean, std, _, _ = summary(differences)
    if (error := std / math.sqrt(n)) < 1e-9:
        return float(abs(mean) >= margin)
    return float(stats.t.sf((margin - abs(mean)) / error, n - 1))


def _verdict(line: Mapping) -> str:
    """Say which row is higher, if either, and whether the difference is within the margin."""
    same = line["p_equivalence"] < LEVEL
    if line["p_holm"] < LEVEL:  # False for NaN
        side = "higher" if line["difference"] > 0 else "lower"
        return f"{side}, within the margin" if same else side
    return "equivalent" if same else "cannot tell"


def sentence(line: Mapping, labels: Mapping[str, str]) -> str:
    """Return a comparison in words, with its figures."""
    first, second = labels[line["first"]], labels[line["second"]]
    seeds = f"{line['seeds']} seeds"
    if line["verdict"] == "cannot tell":
        seeds += f", which can detect a difference of {line['could_have_seen']:.1f}"
    interval = f"95 % interval {line['low']:+.1f} to {line['high']:+.1f}"
    verdict = f"{WORDS[line['verdict']].format(**line)}, {line['difference']:+.1f}"
    where = f"{first} compared with {second}, {line['steps']:,} steps"
    return f"{where}: {verdict} ({interval}; {seeds})"
