"""The questions a study is asked, and plain answers computed from its runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lora2.report.audit_counts import ranks
from lora2.report.escape import grid, markdown
from lora2.report.render import TASK_NAMES
from lora2.report.study_data import Results
from lora2.report.study_gaps import (
    IDLE,
    LARGER,
    SMALLER,
    UNKNOWN,
    Gap,
    Pair,
    gaps,
    overall,
)
from lora2.report.study_tables import idle_count

K1 = Pair("1", "lora2-k1", "lora-r1")
K8 = Pair("1", "lora2-k8", "lora-r8")
RANK = Pair("1", "lora2-k8", "lora2-k1")
FEWER = (*(Pair("3", "all", row) for row in ("uv", "UV", "uv-UV", "PQ")),
         *(Pair("pruning", "lora2-k8", row) for row in ("uv-UV", "PQ")))  # fmt: skip
NO_REGULARISER = Pair("pruning", "lora2-k8", "no-regulariser")
NO_PRUNING = Pair("pruning", "lora2-k8", "no-pruning")
EQ8 = Pair("pruning", "lora2-k8", "eq8")


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and the pairs of rows that answer it."""

    text: str
    pairs: tuple[Pair, ...]


QUESTIONS = (
    Question("Does LoRA² k=1 beat LoRA r=1 at equal tuning?", (K1,)),
    Question("Does LoRA² k=8 beat LoRA r=8 at equal tuning?", (K8,)),
    Question("Do all regularisers beat fewer?", (*FEWER, NO_REGULARISER)),
    Question("Does pruning matter?", (NO_PRUNING,)),
    Question("Does Eq. 9 matter, against Eq. 8?", (EQ8,)),
    Question("Does the rank that k=8 adds over k=1 matter?", (RANK,)),
)
SPREAD = Question("Is the gain larger than the seeds' spread?", (K1, K8, RANK))
SPREAD_RULE = (
    "Spread: the standard deviation over seeds within a row, pooled over the two rows. *Gain* or "
    "*loss larger*: the whole interval of the difference lies beyond one spread above or below 0; "
    "*smaller*: within one spread on both sides; *cannot tell*: neither."
)


def points(value: float) -> str:
    """A difference with its sign, in percent points; a dash where there is none."""
    # Adding 0.0 turns a rounded -0.00 into +0.00.
    return f"{round(value, 2) + 0.0:+.2f}" if math.isfinite(value) else "–"


def _plain(value: float, form: str = ".2f") -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else _plain(value, ".3f")


def names(results: Results, pair: Pair) -> tuple[str, str]:
    """The labels of a pair's rows."""
    labels = results.rows(pair.table)
    return labels[pair.first], labels[pair.second]


def sentence(results: Results, line: Gap) -> str:
    """One line in words, e.g. "CoLA: larger (+2.10 points, 95 % interval +0.50 to +3.70; n=3)"."""
    seen = f"{points(line.mean)} points"
    if math.isfinite(line.low):
        seen += f", 95 % interval {points(line.low)} to {points(line.high)}"
    if line.verdict == UNKNOWN and math.isfinite(line.smallest):
        seen += f"; could have seen {line.smallest:.2f}"
    stuck = "; ".join([seen, f"n={line.n}", *asleep(results, line)])
    return f"{TASK_NAMES[line.task]}: {line.verdict} ({stuck})"


def asleep(results: Results, line: Gap) -> list[str]:
    """Which rows of a line did not rise above the majority class, in words; none: empty."""
    both = zip(names(results, line.pair), (line.first_idle, line.second_idle), strict=True)
    stuck = [label for label, idle in both if idle]
    return [f"{' and '.join(stuck)} not above the majority class"] * bool(stuck)


def brief(results: Results, lines: Sequence[Gap]) -> str:
    """Lines by verdict, e.g. "larger on CoLA +2.10 (+0.50 to +3.70); cannot tell on ..."."""
    parts = []
    for verdict in dict.fromkeys(one.verdict for one in lines):
        own = [_mean(results, one) for one in lines if one.verdict == verdict]
        parts.append(f"{verdict} on {', '.join(own)}")
    return "; ".join(parts)


def _mean(results: Results, line: Gap) -> str:
    more = [f"{points(line.low)} to {points(line.high)}"] * math.isfinite(line.low)
    if line.verdict == UNKNOWN and math.isfinite(line.smallest):
        more.append(f"could have seen {line.smallest:.2f}")
    more += asleep(results, line)
    return f"{TASK_NAMES[line.task]} {points(line.mean)}" + f" ({'; '.join(more)})" * bool(more)


def by_pair(results: Results, lines: Sequence[Gap], named: bool = False) -> str:
    """Lines in words, those of one pair together; ``named`` or several pairs: with their rows."""
    pairs = list(dict.fromkeys(one.pair for one in lines))
    return "; ".join(
        (f"{' over '.join(names(results, pair))}: " if named or len(pairs) > 1 else "")
        + brief(results, [one for one in lines if one.pair == pair])
        for pair in pairs
    )


def answer(results: Results, question: Question, lines: Sequence[Gap], short: bool = False) -> str:
    """The plain answer to a question, unescaped."""
    if not lines:
        return "Not run in this study."
    if len(question.pairs) == 1:
        each = (sentence(results, one) for one in lines)
        return (
            (brief(results, lines) if short else "; ".join(each)) + "." + tuned(results, question)
        )
    pairs = list(dict.fromkeys(one.pair for one in lines))
    judged = {pair: overall(lines, pair) for pair in pairs}
    told = [one.verdict for own in judged.values() for one in own]
    told += [IDLE for own in judged.values() if not own]
    words = (LARGER, SMALLER, UNKNOWN, IDLE)
    counts = ", ".join(f"{word} in {told.count(word)}" for word in words if word in told)
    each = by_pair(results, [one for own in judged.values() for one in own], named=True)
    plural = "s" * (len(told) > 1)
    return f"Of {len(told)} comparison{plural} {counts}" + f": {each}." * bool(each)


def tuned(results: Results, question: Question) -> str:
    """Which rows of Table 1 took the rate that other rows of their method were tried with."""
    rates = results.rates.drop_duplicates("row").groupby("method")["row"].agg(list)
    methods = results.runs.drop_duplicates("row").set_index("row")["method"]
    said = []
    for row in dict.fromkeys(row for one in question.pairs for row in (one.first, one.second)):
        tried = rates.get(methods.get(row), [])
        if question.pairs[0].table == "1" and tried and row not in tried:
            labels = [results.rows("1")[one] for one in tried]
            said.append(f"{results.rows('1')[row]} took the rate chosen for {', '.join(labels)}")
    return f" {'; '.join(said)}." * bool(said)


def lines_of(results: Results, lines: Sequence[Gap]) -> list[str]:
    """Every number of an answer as a Markdown table."""
    head = ["First", "Second", "Task", "Seeds", "Difference", "95 % interval", "p", "p (Holm)",
            "Could have seen", "Verdict"]  # fmt: skip
    rows = [
        [*names(results, one.pair), TASK_NAMES[one.task], one.n, points(one.mean),
         f"{points(one.low)} to {points(one.high)}" if math.isfinite(one.low) else "–",
         _p(one.p), _p(one.p_holm), _plain(one.smallest), one.verdict]
        for one in lines
    ]  # fmt: skip
    return grid([head, *rows])


def answers(results: Results) -> list[str]:
    """A part of the page for each question: the plain answer, then its numbers."""
    text: list[str] = []
    for question in QUESTIONS:
        lines = gaps(results, question.pairs)
        text += [f"### {markdown(question.text)}", ""]
        text += [f"**{markdown(answer(results, question, lines))}**", ""]
        text += [*lines_of(results, lines), ""] if lines else []
    return [*text, *_rank_one(results), *_against_spread(results)]


def _rank_one(results: Results) -> list[str]:
    """What k=1 being a rank-one update times a scalar means for the claim."""
    audited = {one.id: one.recomputed for one in ranks()}
    sizes = {row: results.runs.loc[results.runs["row"] == row, "params_adapter"].max()
             for row in (K1.first, K1.second)}  # fmt: skip
    counts = " and ".join(
        f"{results.rows('1')[row]} {int(size):,}"
        for row, size in sizes.items()
        if row in results.rows("1") and math.isfinite(size)
    )
    lines = gaps(results, (K1,))
    text = (
        f"At k=1 the update u (v diag(λ) U) V is the outer product of u and V times one scalar, "
        f"the sum over i of v_i λ_i U_i: {audited['rank/k=1']} (results/paper/audit.md, rank/k=1), "
        f"the same functions as LoRA r=1. Trainable parameters: {counts or 'not run'}; those "
        "beyond LoRA's only parametrise the scalar, and pruning a λ_i drops a term of that sum. A "
        "difference between the two rows therefore comes from how they are trained (start, "
        "regulariser, pruning, step size), not from what they can represent. Seen:"
    )
    said = answer(results, Question("", (K1,)), lines)
    title = "### What does k=1 being a rank-one update times a scalar mean for the claim?"
    return [title, "", f"{markdown(text)} **{markdown(said)}**", ""]


def _against_spread(results: Results) -> list[str]:
    lines = gaps(results, SPREAD.pairs)
    text = [f"### {markdown(SPREAD.text)}", ""]
    if not lines:
        return [*text, "Not run in this study."]
    head = ["First", "Second", "Task", "Difference", "95 % interval", "Spread",
            "Difference / spread", "Against the spread"]  # fmt: skip
    rows = [
        [*names(results, one.pair), TASK_NAMES[one.task], points(one.mean),
         f"{points(one.low)} to {points(one.high)}" if math.isfinite(one.low) else "–",
         _plain(one.spread), _ratio(one), one.against_spread]
        for one in lines
    ]  # fmt: skip
    judged = [one for pair in SPREAD.pairs for one in overall(lines, pair)]
    said = []
    for word in dict.fromkeys(one.against_spread for one in judged):
        own = [f"{' over '.join(names(results, one.pair))} on {TASK_NAMES[one.task]}"
               for one in judged if one.against_spread == word]  # fmt: skip
        said.append(f"{word}: {', '.join(own)}")
    told = markdown("; ".join(said) or "no row rose above the majority class")
    return [*text, f"**{told}.** {SPREAD_RULE}", "", *grid([head, *rows])]


def _ratio(line: Gap) -> str:
    return _plain(abs(line.mean) / line.spread) if line.spread > 0 else "–"


def headline(results: Results) -> list[str]:
    """The answers in a few lines, for README."""
    lines = []
    for question in QUESTIONS:
        said = answer(results, question, gaps(results, question.pairs), short=True)
        lines.append(f"* **{markdown(question.text)}** {markdown(said)}")
    about = (
        f"Study {results.study.name}: {results.study.note} First row minus second in percent "
        "points (95 % interval; the smallest difference that these seeds could have seen), paired "
        f"by seed. {idle_count(results)}"
    )
    return [markdown(about), "", *lines]
