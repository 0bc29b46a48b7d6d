"""Tables as files: CSV in long form, Markdown and LaTeX to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from lora2 import markup as escape
from lora2.latex import tex_float
from lora2.paper import numbers as paper_tables
from lora2.records.store import write_atomically
from lora2.tables import build as tables
from lora2.tables.compare import compare
from lora2.tables.notes import flags
from lora2.tables.plan import Plan

TASK_NAMES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "stsb": "STS-B",
    "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", tables.AVERAGE: "Avg",
}  # fmt: skip
METRIC_NAMES = {
    "matthews_correlation": "Mcc", "accuracy": "acc", "f1": "F1", "pearson": "Pearson",
    "matched_accuracy": "m", "mismatched_accuracy": "mm",
}  # fmt: skip
PROFILES = {
    "embedded": "This is not the paper's encoder and not the paper's data: a tiny encoder and "
    "small synthetic tasks that ship with the package. It shows that everything runs; it says "
    "nothing about the paper's claims.",
    "small": "This is not the paper's encoder: a small public encoder in its place, and data cut "
    "down or replaced where a line below the table says so. Do not compare its numbers with the "
    "paper's.",
}
Escape = Callable[[object], str]


def _lost(group: pd.DataFrame, most: int) -> str:
    """What is not in a cell: "(3/5; 1 diverged, 1 missing)" of the plan, "(n=2)" of ``most``."""
    first = group.iloc[0]
    lost = [f"{int(first[k])} {k}" for k in ("failed", "diverged", "ambiguous", "missing")
            if first[k]]  # fmt: skip
    if lost:
        return f" ({int(first['n'])}/{int(first['planned'])}; {', '.join(lost)})"
    return f" (n={int(first['n'])})" if 0 < first["n"] < most else ""


def _cell(group: pd.DataFrame, mean: str, std: str, most: int) -> str:
    """Mean and deviation of a task's metrics, e.g. "91.62/88.05 ± 0.10/0.08 (2/3; 1 failed)"."""
    if group.empty:
        return "–"
    means, deviations = group[mean].tolist(), group[std].tolist()
    if not all(map(math.isfinite, means)):
        return "–" + _lost(group, most)
    text = "/".join(f"{value:.2f}" for value in means)
    if all(map(math.isfinite, deviations)):
        text += " ± " + "/".join(f"{value:.2f}" for value in deviations)
    return text + _lost(group, most)


def _plain(group: pd.DataFrame, column: str, form: str) -> str:
    values = group[column].tolist() if not group.empty else []
    known = bool(values) and all(map(math.isfinite, values))
    # Adding 0.0 turns a rounded -0.00 into +0.00.
    return "/".join(format(round(v, 2) + 0.0, form) for v in values) if known else "–"


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _share(cell: pd.Series) -> str:
    """The adapter's parameters and their share of the whole model, e.g. "1,336,896 (0.72%)"."""
    whole = float(cell["params_encoder"]) + float(cell["params_head"])
    share = f" ({100 * float(cell['params_adapter']) / whole:.2f}%)" if whole > 0 else ""
    return _count(float(cell["params_adapter"])) + share


def _head(plan: Plan) -> list[str]:
    names = []
    for task in plan.tasks:
        metrics = "/".join(METRIC_NAMES.get(m, m) for m in plan.metrics_of(task))
        names.append(f"{TASK_NAMES[task]} ({metrics})")
    return ["Method", "Parameters", "Kept", *names, "Avg"]


def grid(plan: Plan, cells: pd.DataFrame, profile: str, which: str = "best") -> list[list[str]]:
    """The printed table, unescaped: a head, then per row ours, the paper's and the difference.

    The difference is shown for the ``paper`` profile alone: elsewhere encoder and data differ.
    """
    mean, std = ("mean", "std") if which == "best" else ("last_mean", "last_std")
    lines, most = [_head(plan)], int(cells["n"].max())
    for row in plan.rows:
        own = cells.loc[cells["label"] == row.label]
        groups = [own.loc[own["task"] == task] for task in (*plan.tasks, tables.AVERAGE)]
        sizes = [_share(own.iloc[0]), _count(float(own["params_kept"].iloc[0]))]
        lines.append([row.label, *sizes, *(_cell(group, mean, std, most) for group in groups)])
        if which == "best" and row.paper_row:
            shown = [_plain(group, "paper", ".2f") for group in groups[:-1]]
            average = tables.paper_average(plan, row)
            shown.append(tables.as_printed(average) if math.isfinite(average) else "–")
            lines.append(
                ["(paper)", paper_tables.printed_size(plan.table, row.paper_row), "", *shown]
            )
            if profile == "paper":
                gaps = [_plain(group, "difference", "+.2f") for group in groups]
                lines.append(["(difference)", "", "", *gaps])
    return lines


def heading(plan: Plan, profile: str) -> list[str]:
    """Title and what must be said before the numbers."""
    title = f"Table {plan.table}" + (f": {plan.title}" if plan.title else "")
    lines = [f"{title} (profile {profile}{_conditions(plan)})"]
    return lines + ([PROFILES[profile]] if profile in PROFILES else [])


def _conditions(plan: Plan) -> str:
    return "".join(f", {name} {value}" for name, value in plan.conditions.items())


def caption(plan: Plan, cells: pd.DataFrame) -> str:
    """How to read a cell."""
    found = {int(seed) for text in cells["seeds"] for seed in text.split()}
    seeds = sorted(found if plan.seeds is None else set(plan.seeds))
    most = int(cells["n"].max()) if plan.seeds is None else len(seeds)
    named = f" (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})" * bool(seeds)
    runs = f"mean ± standard deviation of n = {most} runs a cell" if most > 1 else "one run a cell"
    return (
        f"Percent, {runs}{named}. (n/planned; why) marks a cell that "
        "lacks runs; failed and diverged runs are never averaged in. Parameters: those of the "
        "adapter at the start, without the head, and their share of encoder and head; kept: those "
        "left after pruning."
    )


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def comparison_grid(frame: pd.DataFrame) -> list[list[str]]:
    """The comparisons that could be made, as text."""
    lines = [["Row", "Against", "Task", "Metric", "Seeds", "Against - row", "Test by seed", "p",
              "p (Holm)", "Test by example", "p", "p (Holm)"]]  # fmt: skip
    for r in frame.loc[frame["n"] > 0].itertuples():
        lines.append(
            [r.label, r.against, TASK_NAMES[r.task], METRIC_NAMES.get(r.metric, r.metric),
             str(r.n), f"{r.difference:+.2f}", r.seed_test, _p(r.seed_p), _p(r.seed_p_holm),
             r.example_test, _p(r.example_p), _p(r.example_p_holm)]
        )  # fmt: skip
    return lines


def markdown(
    plan: Plan, cells: pd.DataFrame, notes: Sequence[str], profile: str, tests: pd.DataFrame
) -> str:
    """The whole report of a table as Markdown."""
    title, *warning = heading(plan, profile)
    lines = [f"# {escape.markdown(title)}", ""]
    lines += [text for w in warning for text in (f"**{escape.markdown(w)}**", "")]
    lines += ["## Best validation score seen, as the paper reports", ""]
    lines += [caption(plan, cells), "", *escape.grid(grid(plan, cells, profile)), ""]
    lines += [text for note in notes for text in (f"- {escape.markdown(note)}",)]
    lines += [""] if notes else []
    lines += ["## Score after the last step", ""]
    lines += [*escape.grid(grid(plan, cells, profile, "last")), ""]
    made = comparison_grid(tests)
    if len(made) > 1:
        lines += [
            "## Differences", "",
            "Best scores over common seeds, the row subtracted from the one it is set against. "
            "By seed: could the two recipes be equal? By example: could these trained models be? "
            "Several seeds' p by example are one by Rüger's rule for dependent tests. "
            "Holm's correction over this table, for each kind of test.", "",
            *escape.grid(made), "",
        ]  # fmt: skip
    return "\n".join(lines)


def latex(plan: Plan, cells: pd.DataFrame, notes: Sequence[str], profile: str) -> str:
    """The table of best scores as a LaTeX float; ``latex.tex_float`` says what that needs."""
    title, *warning = heading(plan, profile)
    about = " ".join([f"{title}.", *warning, caption(plan, cells)])
    return tex_float(plan.table, about, grid(plan, cells, profile), notes)


def write(plan: Plan, runs: pd.DataFrame, profile_dir: Path | str, profile: str) -> list[Path]:
    """Write table<n>.csv, .md, .tex and table<n>_tests.csv into ``profile_dir``.

    Returns their paths. Each file is replaced in one step.
    """
    folder = Path(profile_dir)
    cells, notes = tables.build(plan, runs), flags(plan, runs)
    tests = compare(plan, runs, folder)
    texts = {
        ".csv": cells.to_csv(index=False, lineterminator="\n"),
        ".md": markdown(plan, cells, notes, profile, tests),
        ".tex": latex(plan, cells, notes, profile),
        "_tests.csv": tests.to_csv(index=False, lineterminator="\n"),
    }
    paths = [folder / f"table{plan.table}{plan.suffix}{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_atomically(path, text)
    return paths
