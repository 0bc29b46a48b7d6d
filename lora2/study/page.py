"""Answer a study's questions, and write docs/study.md and README's lines from its CSVs.

python -m lora2.study.page small-cpu results/small [--check]
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import special, stats

from lora2.config.problems import ConfigError
from lora2.markup import grid, markdown
from lora2.records.store import StoreError, read_csv, write_pages
from lora2.study.select import read
from lora2.study.spec import Part, Question, Study, load_study
from lora2.tables.stats import holm, paired_t, summary

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = Path(__file__).with_name("claims.csv")
TEMPLATE = Path(__file__).with_name("page.md")
BLOCK = re.compile(r"(<!-- begin study -->\n).*?(<!-- end study -->)", re.DOTALL)
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
# The verdicts with which a claim holds, by its rule; "lower" without a margin contradicts both.
HOLDS = {
    "higher": ("higher", "higher, within the margin"),
    "not lower": ("higher", "higher, within the margin", "equivalent", "lower, within the margin"),
}
# Okabe and Ito's colours, distinct without colour vision too; k = 1 and r = 1 are hollow.
COLOURS = {"lora": "#0072b2", "adalora": "#e69f00", "lora2": "#d55e00", "published": "#009e73"}
STYLE = {"svg.hashsalt": "lora2", "font.family": "DejaVu Sans", "font.size": 9}


def answer(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return a line for every question, pair of rows and budget with two common seeds or more.

    ``scores`` is scores.csv; parts of one task and length are one budget, under the first one's
    name. difference: first minus second in percentage points, the mean over common seeds; low,
    high: its 95 % t-interval; p: paired t-test, p_holm: corrected over the lines of the question,
    all budgets included; p_equivalence: of two one-sided tests against the task's margin;
    could_have_seen: the true difference that these seeds find with a power of 80 % at the corrected
    level. Last and best scores have separate lines.
    """
    lines, budgets = list[dict](), dict[tuple[str, int], Part]()
    for part in study.parts:
        budgets.setdefault((part.task, part.steps), part)
    for question in study.questions:
        for score in ("score_last", "score_best"):
            tested = [
                {"question": question.ask, "first": first, "second": second,
                 **_compare(study, part, differences)}
                for part in budgets.values()
                for first, second in question.pairs
                if len(differences := paired(scores, part, first, second, score)) > 1
            ]  # fmt: skip
            for line, p in zip(tested, holm([line["p"] for line in tested]), strict=True):
                line |= {"score": score.removeprefix("score_"), "p_holm": p}
                # At the level of Holm's first step, divided by all lines; noncentral t.
                df, level = line["seeds"] - 1, LEVEL / len(tested)
                shift = special.nctdtrinc(df, 1 - POWER, stats.t.ppf(1 - level / 2, df))
                line["could_have_seen"] = line.pop("error") * shift
                lines.append({**line, "verdict": _verdict(line)})
    return pd.DataFrame(lines, columns=COLUMNS)


def paired(scores: pd.DataFrame, part: Part, first: str, second: str, score: str) -> np.ndarray:
    """Return first minus second for each seed that both rows have at a part's budget, (seeds,)."""
    there = (scores["task"] == part.task) & (scores["steps"] == part.steps)
    runs = scores.loc[there].drop_duplicates("run").set_index("seed")  # a run may be in two parts
    a, b = (runs.loc[runs["row"] == row, score] for row in (first, second))
    return (a - b).dropna().to_numpy(dtype=float)


def _compare(study: Study, part: Part, differences: np.ndarray) -> dict:
    """Return the figures of one comparison, except those that depend on the question's others."""
    n, mean, std, low, high = summary(differences)
    margin, error = study.margin[part.task], _standard_error(std, n)
    return {"part": part.name, "task": part.task, "steps": part.steps, "seeds": n,
            "difference": mean, "low": low, "high": high, "p": paired_t(differences),
            "margin": margin, "p_equivalence": equivalence(differences, margin),
            "error": error}  # fmt: skip


def equivalence(differences: Sequence[float] | np.ndarray, margin: float) -> float:
    """Return the p-value of two one-sided t-tests (Schuirmann 1987): small if |mean| < margin.

    NaN if all differences are equal: two rows that learnt nothing are not as good as each other.
    """
    n, mean, std, _, _ = summary(differences)
    return float(stats.t.sf((margin - abs(mean)) / _standard_error(std, n), n - 1))


def _standard_error(std: float, n: int) -> float:
    """Return the standard error of a mean; NaN if all values are equal, but for rounding."""
    error = std / math.sqrt(n)
    return error if error > 1e-9 else math.nan


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
    if line["verdict"] == "cannot tell" and line["could_have_seen"] > 0:  # False for NaN
        seeds += f", which can detect a difference of {line['could_have_seen']:.1f}"
    interval = f"95 % interval {line['low']:+.1f} to {line['high']:+.1f}"
    verdict = f"{WORDS[line['verdict']].format(**line)}, {line['difference']:+.1f}"
    where = f"{first} compared with {second}, {line['steps']:,} steps"
    return f"{where}: {verdict} ({interval}; {seeds})"


@dataclasses.dataclass(frozen=True)
class Results:
    study: Study
    folder: Path
    scores: pd.DataFrame
    answers: pd.DataFrame

    @property
    def labels(self) -> dict[str, str]:
        return {row.id: row.label for row in self.study.table.rows}


def load(study: Study, folder: Path) -> Results:
    scores = read(folder, "scores")
    scores = scores.loc[scores["part"].isin([part.name for part in study.parts])]
    return Results(study, folder, scores, answer(study, scores))


def page(results: Results) -> str:
    """Return the text of docs/study.md."""
    answers = [f"* **{ask}** {'. '.join(lines) + '.' if lines else 'Not run yet.'}"
               for ask, lines in _by_question(results).items()]  # fmt: skip
    return TEMPLATE.read_text(encoding="utf-8").format(
        note=results.study.note,
        folder=results.folder.relative_to(ROOT),
        progress=_progress(results),
        scores="\n".join(grid(list(_score_rows(results)))),
        answers="\n".join(answers),
        claims="\n".join(grid(list(_claim_rows(results)))),
        **_protocol(results),
        not_run="\n".join(_not_run(results)) or "Nothing: every part of the study's file was run.",
    )


def headline(results: Results) -> str:
    """Return README's lines: the figure, and a sentence for the first three questions answered."""
    folder = results.folder.relative_to(ROOT)
    answered = [f"* {lines[0]}." for lines in _by_question(results).values() if lines]
    figure = f"![Score against steps]({folder}/budget.png)"
    return "\n".join([figure, "", _progress(results), "", *answered[:3], ""])


def _by_question(results: Results) -> dict[str, list[str]]:
    """Return each question's sentences: longest budgets, and others with a difference found."""
    last, labels = results.answers.loc[results.answers["score"] == "last"], results.labels
    longest = last.groupby(["question", "first", "second", "task"])["steps"].transform("max")
    shown = (last["steps"] == longest) | last["verdict"].str.startswith(("higher", "lower"))
    lines = last.loc[shown].sort_values("steps", ascending=False, kind="stable").to_dict("records")
    return {q.ask: [sentence(line, labels) for line in lines if line["question"] == q.ask]
            for q in results.study.questions}  # fmt: skip


def _score_rows(results: Results) -> Iterator[list[str]]:
    """Yield the head, then a line for each row of the parts with the most steps of their task."""
    yield ["Row", "Task", "Steps", "Rate", "Last", "Best", "Seeds", "Parameters", "Kept"]
    scores = results.scores
    longest = scores.loc[scores["steps"] == scores.groupby("task")["steps"].transform("max")]
    cells = dict(iter(longest.drop_duplicates("run").groupby(["task", "row"])))
    keys = dict.fromkeys((part.task, row) for part in results.study.parts for row in part.rows)
    for key in [key for key in keys if key in cells]:
        cell, first = cells[key], cells[key].iloc[0]
        last, best = summary(cell["score_last"]), summary(cell["score_best"])
        shown = [f"{s.mean:.1f}" + (f" ± {s.std:.1f}" if s.n > 1 else "") for s in (last, best)]
        yield [results.labels[key[1]], first["task"], f"{first['steps']:,}",
               f"{first['learning_rate']:g}", *shown, str(last.n),
               f"{int(cell['params_adapter'].mean()):,}",
               f"{int(cell['params_kept'].mean()):,}"]  # fmt: skip


def claims(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of claims.csv about the study's rows, each with its verdict.

    Tested alone, at each task's longest budget: a shorter one shows which row learns fastest.
    """
    table, rows = pd.read_csv(CLAIMS), {row.id for row in study.table.rows}
    table = table.loc[table["first"].isin(rows) & table["second"].isin(rows)]
    pairs = zip(table["id"], table["first"], table["second"], strict=True)
    questions = [Question(ask=id, pairs=[[first, second]]) for id, first, second in pairs]
    parts = [part for part in study.parts
             if part.steps == max(p.steps for p in study.parts if p.task == part.task)]  # fmt: skip
    tested = answer(dataclasses.replace(study, questions=questions, parts=parts), scores)
    tested = tested.loc[tested["score"] == "last"].rename(columns={"question": "id"})
    merged = table.merge(tested, how="left", on=["id", "first", "second"])
    holds = [
        "not run" if not verdict else "holds here" if verdict in HOLDS[rule]
        else "does not hold here" if verdict.startswith("lower") else "undecided"
        for rule, verdict in zip(merged["rule"], merged["verdict"].fillna(""), strict=True)
    ]  # fmt: skip
    return merged.assign(holds=holds)


def _claim_rows(results: Results) -> Iterator[list[str]]:
    yield ["Claim", "Tested as", "Task", "Difference (95 % interval; seeds)", ""]
    labels = results.labels
    for line in claims(results.study, results.scores).to_dict("records"):
        task, figures = "–", "–"
        if line["holds"] != "not run":
            task, figures = line["task"], "{difference:+.1f} ({low:+.1f} to {high:+.1f}; {seeds:g})"
        tested = f"{labels[line['first']]} {line['rule']} than {labels[line['second']]}"
        yield [line["claim"], tested, task, figures.format(**line), line["holds"]]


def _protocol(results: Results) -> dict[str, object]:
    study, runs = results.study, read_csv(results.folder / "runs.csv")
    runs = runs.loc[runs["run"].isin(results.scores["run"])]
    names = ("backbone", "backbone_revision", "precision", "device", "commit")
    used = {name: markdown(", ".join(runs[name].dropna().unique())) for name in names}
    used["backbone"] = f"{used['backbone']} {used.pop('backbone_revision')}".strip()
    held_out = ", ".join(f"{rows:,} of {task}" for task, rows in study.holdout.items())
    margins = ", ".join(f"{task} {margin:g}" for task, margin in study.margin.items())
    return {**used, "held_out": held_out, "seed": study.selection_seed, "margins": margins}


def _progress(results: Results) -> str:
    """Say how many parts are complete, unless all are."""
    parts = len(results.study.parts)
    complete = sum(not rows for rows in _missing(results).values())
    begun = results.scores["part"].nunique() - complete
    text = f"Parts of the study: {parts} planned, {complete} complete, {begun} begun."
    return text if complete < parts else ""


def _missing(results: Results) -> dict[str, dict[str, list[int]]]:
    """Return for each part the seeds without a score of each row that lacks some."""
    done = set(results.scores[["part", "row", "seed"]].itertuples(index=False, name=None))
    left = {part.name: {row: [s for s in part.seeds if (part.name, row, s) not in done]
                        for row in part.rows} for part in results.study.parts}  # fmt: skip
    return {part: {row: s for row, s in rows.items() if s} for part, rows in left.items()}


def _not_run(results: Results) -> Iterator[str]:
    missing = _missing(results)
    for part in results.study.parts:
        rows_of: dict[str, list[str]] = {}  # by the seeds that are missing
        for row, seeds in missing[part.name].items():
            some = "" if len(seeds) == len(part.seeds) else f" (seeds {', '.join(map(str, seeds))})"
            rows_of.setdefault(some, []).append(row)
        groups = [
            f"{'all rows' if len(rows) == len(part.rows) else ', '.join(rows)}{seeds}"
            for seeds, rows in rows_of.items()
        ]
        if groups:
            yield f"* {part.name} ({part.steps:,} steps): {'; '.join(groups)}"


def budget_curve(study: Study, scores: pd.DataFrame, task: str) -> Figure:
    """Draw mean and 95 % interval of each row with two budgets or more, or of all if none has."""
    of_task = scores.loc[scores["task"] == task].drop_duplicates("run")
    budgets = of_task.groupby("row")["steps"].nunique()
    least = 2 if (budgets >= 2).any() else 1
    rows = [row for row in study.table.rows if budgets.get(row.id, 0) >= least]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        cells = of_task.loc[of_task["row"] == row.id].groupby("steps")["score_last"]
        points = {int(steps): summary(values) for steps, values in cells}
        # A small shift, so that the intervals of a budget do not overlap.
        x = [steps * 1.03 ** (place - len(rows) / 2) for steps in points]
        y = [point.mean for point in points.values()]
        error = [0.0 if point.n < 2 else point.high - point.mean for point in points.values()]
        kind = "published" if row.id.endswith("-published") else row.method
        colour = COLOURS.get(kind, "#777777")
        small = row.id.removesuffix("-published").endswith(("-r1", "-k1"))
        axes.errorbar(x, y, yerr=error, label=row.label, color=colour, marker="o", capsize=2,
                      linestyle="--" if small else "-", elinewidth=1,
                      markerfacecolor="white" if small else colour)  # fmt: skip
    ticks = sorted({int(steps) for steps in of_task["steps"]})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{steps:,}" for steps in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.6, ticks[-1] * 1.6)
    axes.set_xlabel("optimiser steps of the whole training (each its own schedule and rate)")
    axes.set_ylabel("last validation score, percentage points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def main(argv: Sequence[str]) -> int:
    """Write page, figure, answers.csv and README's lines; with --check return 1 if they differ."""
    words = [word for word in argv if not word.startswith("--")]
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = (ROOT / words[1]).resolve()
    try:
        if not folder.is_relative_to(ROOT):
            raise StoreError(f"{folder}: move it into {ROOT}, whose pages link to its files")
        results = load(load_study(words[0]), folder)
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    readme = ROOT / "README.md"
    lines = headline(results)
    pages = {
        ROOT / "docs" / "study.md": page(results),
        folder / "answers.csv": results.answers.to_csv(index=False, lineterminator="\n"),
        readme: BLOCK.sub(lambda m: m[1] + lines + m[2], readme.read_text(encoding="utf-8")),
    }
    options = [word for word in argv if word.startswith("--")]
    stale = write_pages(pages, options, "make report-study")
    if not options:
        with matplotlib.rc_context(STYLE):  # the same bytes for the same figure
            figure = budget_curve(results.study, results.scores, "cola")
            figure.savefig(folder / "budget.svg", metadata={"Date": None})
            figure.savefig(folder / "budget.png", dpi=150, metadata={"Software": None})
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
