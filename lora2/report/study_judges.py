"""How a claim of the paper is judged: confirmed, not confirmed, not testable here; and by what."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from lora2.report import paper_tables, store
from lora2.report.audit import audit
from lora2.report.finding import Finding
from lora2.report.render import TASK_NAMES
from lora2.report.study_answers import NO_PRUNING, by_pair, names
from lora2.report.study_data import Results
from lora2.report.study_gaps import LARGER, SMALLER, Gap, Pair, corrected, gaps, overall
from lora2.report.study_tables import on_processor

YES, NO, UNTESTED = "confirmed", "not confirmed", "not testable here"
MARGIN = 1.0  # percent points that still count as comparable
NEAR = 0.05  # of the paper's ratio of times
AUDIT = "results/paper/audit.md"
RIVALS = {"lora2-k1": ("adalora-r2", "lora-r1", "sora-r1"),
          "lora2-k8": ("adalora-r8", "lora-r8", "sora-r8")}  # fmt: skip


class Judged(NamedTuple):
    """A verdict, why, and where the evidence lies: file and row."""

    verdict: str
    why: str
    evidence: str


Judge = Callable[[Results], Judged]


def _evidence(results: Results, pairs: Sequence[Pair]) -> str:
    rows: dict[str, list[str]] = {}
    for pair in pairs:
        known = results.rows(pair.table)
        rows.setdefault(pair.table, [])
        rows[pair.table] += [known[row] for row in (pair.first, pair.second) if row in known]
    return "; ".join(
        f"{results.folder}/table{table}.csv: {', '.join(dict.fromkeys(labels))}"
        for table, labels in rows.items()
        if labels
    )


def _judged(results: Results, pairs: Sequence[Pair], score: str, tasks: Sequence[str]) -> list[Gap]:
    """The lines a claim is judged by, p corrected over them; ``tasks`` given, of those alone."""
    lines = gaps(results, pairs, score)
    if tasks:
        return corrected([one for one in lines if one.task in tasks and not one.idle])
    return corrected([one for pair in pairs for one in overall(lines, pair)])


def _unfit(lines: Sequence[Gap], pairs: Sequence[Pair]) -> bool:
    """Whether a pair did not run or start, or nothing was run with two seeds."""
    return {one.pair for one in lines} != set(pairs) or all(one.n < 2 for one in lines)


def _untested(
    results: Results,
    pairs: Sequence[Pair],
    score: str = "score_best",
    tasks: Sequence[str] = (),
) -> Judged:
    ran = [one for one in gaps(results, pairs, score) if not tasks or one.task in tasks]
    if not ran:
        return Judged(UNTESTED, "not in this study", "–")
    alone = "one seed: " * all(one.n < 2 for one in ran)
    return Judged(UNTESTED, alone + by_pair(results, ran), _evidence(results, pairs))


def beats(*pairs: Pair, score: str = "score_best", tasks: Sequence[str] = ()) -> Judge:
    """The first row of every pair is larger than the second."""

    def judge(results: Results) -> Judged:
        lines = _judged(results, pairs, score, tasks)
        against = [one for one in lines if one.verdict == SMALLER]
        if _unfit(lines, pairs) and not against:  # one pair refutes what all must show
            return _untested(results, pairs, score, tasks)
        verdict = NO if against or any(one.verdict != LARGER for one in lines) else YES
        why = by_pair(results, lines) + "; the opposite was seen" * bool(against)
        why += "".join(f" ({results.mark(task)})" for task in tasks if results.mark(task))
        file = f"{results.folder}/curves.csv; " if score == "score_first" else ""
        return Judged(verdict, why, file + _evidence(results, pairs))

    return judge


def comparable(*pairs: Pair) -> Judge:
    """The first row of every pair is at most ``MARGIN`` below the second."""

    def judge(results: Results) -> Judged:
        lines = _judged(results, pairs, "score_best", ())
        below = any(one.high < -MARGIN for one in lines)
        if _unfit(lines, pairs) and not below:
            return _untested(results, pairs)
        verdict = YES if all(one.low > -MARGIN for one in lines) else NO
        return Judged(verdict, by_pair(results, lines), _evidence(results, pairs))

    return judge


@functools.cache
def _findings() -> dict[str, Finding]:
    return {one.id: one for one in audit()}


def audited(*ids: str) -> Judge:
    """The paper's own numbers agree with it."""

    def judge(results: Results) -> Judged:
        own = [_findings()[name] for name in ids]
        verdict = YES if all(one.verdict == "agrees" for one in own) else NO
        why = "; ".join(f"printed {one.printed}, recomputed {one.recomputed}" for one in own)
        return Judged(verdict, why, f"{AUDIT}: {', '.join(ids)}")

    return judge


def r_almost_free(results: Results) -> Judged:
    """The parameters whose number depends on r are those whose scores Eq. 9 reads."""
    judged = audited("scores/768x768 k=1")(results)
    return judged._replace(why=f"those that r adds are the scores Eq. 9 reads: {judged.why}")


def reasoned(verdict: str, why: str, evidence: str) -> Judge:
    """A verdict that no study changes: algebra, or what none of its files holds."""
    return lambda results: Judged(verdict, why, evidence)


def drawn_only(results: Results) -> Judged:
    """Figure 3: a picture of the ranks kept in one seed, of which no test is made."""
    if not results.has("figure3"):
        return Judged(UNTESTED, "not in this study", "–")
    own = results.runs.loc[results.runs["table"] == "figure3"]
    stuck = [TASK_NAMES[task] for task in dict.fromkeys(own.loc[own["idle"], "task"])]
    why = "the ranks of each matrix are drawn, not tested, and of one seed"
    why += f"; not above the majority class: {', '.join(stuck)}" * bool(stuck)
    return Judged(UNTESTED, why, f"{results.folder}/figure3.png")


def most_tasks(results: Results) -> Judged:
    """On more than half of the tasks LoRA2 is larger than every rival of its size."""
    won, of, said = 0, 0, []
    for ours, rivals in RIVALS.items():
        pairs = [Pair("1", ours, rival) for rival in rivals]
        lines = gaps(results, pairs)
        tasks = [t for t in results.clean("1") if _started(lines, t, len(pairs))]
        first = [t for t in tasks if all(g.verdict == LARGER for g in lines if g.task == t)]
        won, of = won + len(first), of + len(tasks)
        if tasks:
            label = names(results, pairs[0])[0]
            said.append(f"{label} larger than all three on {len(first)} of {len(tasks)} tasks")
    pairs = [Pair("1", ours, rival) for ours, rivals in RIVALS.items() for rival in rivals]
    if not of:
        return _untested(results, pairs)
    return Judged(YES if 2 * won > of else NO, "; ".join(said), _evidence(results, pairs))


def _started(lines: Sequence[Gap], task: str, pairs: int) -> bool:
    """Whether every pair of a task can be judged, by two seeds, or one of them was lost already."""
    own = [one for one in lines if one.task == task and not one.idle and one.n > 1]
    return len(own) == pairs or any(one.verdict == SMALLER for one in own)


def best_average(results: Results) -> Judged:
    """LoRA2 k=8 is larger than every other row of the paper's Table 1."""
    others = [row for row in results.rows("1") if row not in ("lora2-k8", "lora-xs")]
    return beats(*(Pair("1", "lora2-k8", row) for row in others))(results)


def half_the_ranks(results: Results) -> Judged:
    """With fewer than half of the ranks kept the score is as without pruning."""
    if NO_PRUNING.table not in results.tables:
        return _untested(results, [NO_PRUNING])
    own = results.runs.loc[
        (results.runs["table"] == NO_PRUNING.table) & (results.runs["row"] == NO_PRUNING.first)
    ]
    shares = {
        float(one["method.target_r"]) / float(one["method.r"])
        for one in store.settings(own)
        if one.get("method.target_r")
    }
    kept = ", ".join(f"{share:.0%}" for share in sorted(shares))
    if not shares or max(shares) >= 0.5:
        return Judged(
            UNTESTED, f"the budget keeps {kept or 'all'}", _evidence(results, [NO_PRUNING])
        )
    verdict, why, evidence = comparable(NO_PRUNING)(results)
    return Judged(verdict, f"kept {kept} against all: {why}", evidence)


def times(results: Results) -> Judged:
    """LoRA2's time of a step is the paper's multiple of AdaLoRA's; told on a GPU only."""
    frame, seen = paper_tables.table(2), _study_ratio(results)
    paper = frame["lora2_s_per_it"].mean() / frame["adalora_s_per_it"].mean()
    if on_processor(results):
        why = "runs shared a processor's cores; steps that took turns are timed by the bench"
        return Judged(UNTESTED, why, "docs/bench.md")
    if seen != seen:
        return Judged(UNTESTED, "no run of either row", "–")
    why = f"{seen:.2f}, mean over tasks; the paper {paper:.2f}"
    evidence = f"{results.folder}/runs.csv: lora2-k8, adalora-r8"
    return Judged(YES if abs(seen - paper) <= NEAR else NO, why, evidence)


def _study_ratio(results: Results) -> float:
    """Mean over tasks of LoRA2's median time of a step by AdaLoRA's; NaN where not run."""
    medians = [
        pd.Series({task: results.cell("1", row, task)["seconds_per_step"].astype(float).median()
                   for task in results.tasks("1")})
        for row in ("lora2-k8", "adalora-r8")
    ]  # fmt: skip
    return float((medians[0] / medians[1]).mean())
