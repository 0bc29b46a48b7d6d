"""docs/study.md and README's lines on the study, from the CSVs of its results folder.

python -m lora2.study.page small-cpu results/small [--check]
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import pandas as pd

from lora2.markup import grid
from lora2.records.store import StoreError, read_csv, write_atomically
from lora2.study.answers import answer, sentence
from lora2.study.figures import STYLE, budget_curve, write
from lora2.study.read import read
from lora2.study.spec import Question, Study, load_study
from lora2.tables.stats import summary

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = Path(__file__).with_name("claims.csv")
BLOCK = re.compile(r"(<!-- begin study -->\n).*?(<!-- end study -->)", re.DOTALL)
HOLDS = {  # rule -> verdict -> what it says of a claim
    "higher": {"higher": "confirmed", "lower": "refuted", "equivalent": "refuted"},
    "not lower": {"higher": "confirmed", "equivalent": "confirmed", "lower": "refuted"},
}


@dataclasses.dataclass(frozen=True)
class Results:
    """A study, its CSVs and what they answer."""

    study: Study
    folder: Path
    scores: pd.DataFrame
    answers: pd.DataFrame

    @property
    def labels(self) -> dict[str, str]:
        return {row.id: row.label for row in self.study.table().rows}

    def longest(self) -> list[str]:
        """Return, for each task, the parts with the most steps that have scores."""
        most = self.scores.groupby("task")["steps"].transform("max")
        return list(dict.fromkeys(self.scores.loc[self.scores["steps"] == most, "part"]))


def load(study: Study, folder: Path) -> Results:
    """Read the CSVs and answer the study's questions."""
    scores = read(folder, "scores")
    return Results(study, folder, scores, answer(study, scores))


def page(results: Results) -> str:
    """Return the whole of docs/study.md."""
    study, folder = results.study, results.folder.relative_to(ROOT)
    parts = [
        "# What LoRA² buys",
        f"{study.note} How it is run: [study-run.md](study-run.md). This page is made from the "
        f"CSVs in [{folder}](../{folder}) by `make report-study`. {_progress(results)}",
        "## Score against budget",
        f"![The last score of each row against the steps of training](../{folder}/budget.png)",
        "Mean of the last validation score over seeds, with its 95 % interval (CoLA: Matthews "
        "correlation, percent points). Each point is a training of its own: its schedule fits its "
        "steps, and its rate was chosen for it on rows held out of train.",
        "## The longest budget that was run",
        _score_table(results),
        "## Answers",
        "First row minus second, paired by seed, by the last score. Higher or lower: paired "
        "t-test, Holm over the lines of a question. Equivalent: two one-sided tests against the "
        "margin that the study's file fixed in advance. Every line, the best scores too: "
        f"[answers.csv](../{folder}/answers.csv).",
        "\n".join(_answers(results)),
        "## The paper's claims (arXiv v1), as far as the study's rows compare them",
        _claim_table(results),
        "## Protocol",
        _protocol(results),
        "## Not run",
        _not_run(results),
    ]
    return "\n\n".join(parts) + "\n"


def headline(results: Results) -> str:
    """Return what README says: the figure and one sentence a question."""
    folder = results.folder.relative_to(ROOT)
    firsts = [next(iter(lines)) for lines in _by_question(results).values() if lines]
    return "\n".join(
        [
            f"![Score against steps]({folder}/budget.png)",
            "",
            _progress(results),
            "",
            *(f"* {line}." for line in firsts[:3]),
            "",
        ]
    )


def _score_table(results: Results) -> str:
    rows = []
    for part in results.longest():
        own = results.scores.loc[results.scores["part"] == part]
        for row in own["row"].unique():
            cell = own.loc[own["row"] == row]
            last, best = summary(cell["score_last"]), summary(cell["score_best"])
            rows.append(
                [results.labels[row], cell["task"].iloc[0], f"{int(cell['steps'].iloc[0]):,}",
                 f"{cell['learning_rate'].iloc[0]:g}", f"{last.mean:.1f} ± {last.std:.1f}",
                 f"{best.mean:.1f} ± {best.std:.1f}", str(last.n),
                 f"{int(cell['params_adapter'].mean()):,}"]
            )  # fmt: skip
    header = ["Row", "Task", "Steps", "Rate", "Last", "Best", "Seeds", "Parameters"]
    return "\n".join(grid([header, *rows]))


def _by_question(results: Results) -> dict[str, list[str]]:
    """Return question -> a sentence a comparison, the longest budget of each pair first."""
    last = results.answers.loc[results.answers["score"] == "last"]
    last = last.sort_values("steps", ascending=False, kind="stable")
    return {
        one.ask: [
            sentence(line, results.labels)
            for _, line in last.loc[last["question"] == one.ask].iterrows()
        ]
        for one in results.study.questions
    }


def _answers(results: Results) -> Iterator[str]:
    for ask, lines in _by_question(results).items():
        yield f"* **{ask}** " + (". ".join(lines) + "." if lines else "Not run yet.")


def claims(study: Study, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of claims.csv with what the longest planned budget of each task says of them."""
    table = pd.read_csv(CLAIMS)
    known = {row.id for row in study.table().rows}
    there = table.loc[table["first"].isin(known) & table["second"].isin(known)]
    pairs = [[line["first"], line["second"]] for _, line in there.iterrows()]
    asked = [Question(ask=id, pairs=[pair]) for id, pair in zip(there["id"], pairs, strict=True)]
    found = answer(dataclasses.replace(study, questions=asked), scores)
    found = found.loc[found["score"] == "last"]
    planned = {part.task: 0 for part in study.parts}
    for part in study.parts:
        planned[part.task] = max(planned[part.task], part.steps)
    found = found.loc[found["steps"] == found["task"].map(planned)]
    merged = table.merge(found, how="left", on=["first", "second"])
    holds = [
        HOLDS[rule].get(str(verdict).split(",")[0], "cannot tell")
        if isinstance(verdict, str)
        else "not run"
        for rule, verdict in zip(merged["rule"], merged["verdict"], strict=True)
    ]
    return merged.assign(holds=holds).drop_duplicates(["id", "first", "second", "task"])


def _claim_table(results: Results) -> str:
    rows = [
        [line["quote"], f"{line['first']} {line['rule']} than {line['second']}",
         line["task"] if isinstance(line["task"], str) else "–",
         f"{line['difference']:+.1f}" if line["holds"] != "not run" else "–", line["holds"]]
        for _, line in claims(results.study, results.scores).iterrows()
    ]  # fmt: skip
    return "\n".join(grid([["The paper", "Tested as", "Task", "Difference", ""], *rows]))


def _protocol(results: Results) -> str:
    study, runs = results.study, read_csv(results.folder / "runs.csv")
    runs = runs.loc[runs["run"].isin(results.scores["run"])]
    held = ", ".join(f"{rows:,} of {task}" for task, rows in study.holdout.items())
    margins = ", ".join(f"{task} {margin:g}" for task, margin in study.margin.items())
    rows = [
        ["scale", "alpha / r is the same for every rank of a method"],
        ["rates", f"one for each row and budget, from a grid of factor 2 that grew until the best "
                  f"was no end of it; by the last score on rows held out of train ({held}; seed "
                  f"{study.selection_seed}). Every rate tried: rates.csv"],
        ["score", "the last evaluation; the best one is picked on the validation split"],
        ["margin of equivalence", f"{margins} percent points, fixed before the final runs"],
        ["encoder", f"{', '.join(runs['backbone'].unique())}, "
                    f"{', '.join(runs['precision'].unique())}"],
        ["device", ", ".join(runs["device"].unique())],
        ["commits", ", ".join(runs["commit"].unique())],
    ]  # fmt: skip
    return "\n".join(grid([["", ""], *rows]))


def _progress(results: Results) -> str:
    """Return how much of the study is there, and whether the longest budget is among it."""
    parts, done = results.study.parts, results.scores["part"].unique()
    if len(done) == len(parts):
        return ""
    most, ran = max(part.steps for part in parts), int(results.scores["steps"].max())
    early = (
        f" Nothing longer than {ran:,} steps was run yet: this says which row starts fastest, not "
        f"where the rows end ({most:,} steps are planned)."
    )
    return f"{len(done)} of the study's {len(parts)} parts were run.{early * (ran < most)}"


def _not_run(results: Results) -> str:
    done = set(map(tuple, results.scores[["part", "row"]].drop_duplicates().to_numpy()))
    lines = []
    for part in results.study.parts:
        missing = [row for row in part.rows if (part.name, row) not in done]
        if missing:
            which = "all rows" if len(missing) == len(part.rows) else ", ".join(missing)
            lines.append(f"* {part.name} ({part.steps:,} steps): {which}")
    return "\n".join(lines) or "Nothing: every part of the study's file was run."


def main(argv: Sequence[str]) -> int:
    """Write page, figure, answers.csv and README's lines; with --check say whether they differ."""
    check, words = "--check" in argv, [word for word in argv if not word.startswith("--")]
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        results = load(load_study(words[0]), ROOT / words[1])
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = {
        ROOT / "docs" / "study.md": page(results),
        results.folder / "answers.csv": results.answers.to_csv(index=False, lineterminator="\n"),
        ROOT / "README.md": BLOCK.sub(lambda m: m[1] + headline(results) + m[2], readme),
    }
    if check:
        stale = [path.name for path, new in text.items() if path.read_text("utf-8") != new]
        print("\n".join(f"{name} is stale: run make report-study" for name in stale), end="")
        return int(bool(stale))
    for path, new in text.items():
        write_atomically(path, new)
    with matplotlib.rc_context(STYLE):
        write(budget_curve(results.study, results.scores, "cola"), results.folder / "budget")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
