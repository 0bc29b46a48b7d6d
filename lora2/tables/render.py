"""Make the tables and Figure 3: CSV in long form, Markdown and LaTeX for readers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora2.markup import grid, markdown, tex_float
from lora2.paper.numbers import AVERAGE, printed_size
from lora2.records import store
from lora2.sweep.table import PLACES, Profile, Table, load_table
from lora2.tables import figure3
from lora2.tables.build import (
    LOST,
    TableResults,
    as_printed,
    build,
    find_results,
    paper_average,
    printed,
)
from lora2.tables.compare import compare

TASK_NAMES = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "stsb": "STS-B",
    "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", AVERAGE: "Avg",
}  # fmt: skip
METRIC_NAMES = {
    "matthews_correlation": "Mcc", "accuracy": "acc", "f1": "F1", "pearson": "Pearson",
    "matched_accuracy": "m", "mismatched_accuracy": "mm",
}  # fmt: skip
MIXED = {  # column of the runs -> its plural in the note that its values are mixed
    "commit": "commits", "backbone": "encoders", "backbone_revision": "encoder revisions",
    "protocol": "training protocols", "device": "devices", "precision": "precisions",
    "python": "Python versions", "torch": "torch versions",
    "transformers": "transformers versions", "peft": "peft versions",
    "datasets": "datasets versions", "accelerate": "accelerate versions",
}  # fmt: skip
HOW_COMPARED = (
    "Best scores over common seeds: the reference row minus the row. The test by seed asks whether "
    "the two training recipes differ, the test by example whether these trained models do. "
    "The p-values by example of several seeds are merged by Rüger's rule for dependent tests. "
    "Holm's correction covers this table, separately for each kind of test."
)
Grid = list[list[str]]  # unescaped cells, the head first
# Words that make another whole table, with files of its own: table1-equal.md.
VARIANTS = ("protocol", "ranks")


def report_table(
    table: Table, profile: Profile, folder: Path, seeds: Sequence[int] | None,
    extra: Sequence[str], runs: pd.DataFrame,
) -> str:  # fmt: skip
    """Write a table or Figure 3 from ``runs``, see ``find_results``; return what to print.

    Of a part of a table, or of another than its own settings, that is its Markdown, and nothing is
    written. A FileNotFoundError if the folders of the figure's runs are not here.
    """
    results = find_results(table, profile, folder, seeds, extra, runs)
    if table.kind != "figure":
        typed = [word.partition("=") for word in extra]
        stem = "-".join([table.stem, *(v for key, _, v in typed if key in VARIANTS)])
        return publish(folder, stem, texts(results, folder, profile), is_official(table, extra))
    finished = results.used().groupby("task")["run"].unique()
    panels = {TASK_NAMES[task]: figure3.read_ranks(folder, finished[task])
              for task in table.tasks if task in finished}  # fmt: skip
    if not panels:
        raise store.StoreError(f"no finished runs for {table.title} in {folder}")
    written = figure3.write(panels, folder / table.stem, profile.note)
    return "\n".join(f"wrote {path}" for path in written)


def is_official(table: Table, extra: Sequence[str]) -> bool:
    """Tell whether this is a whole table with its own settings, which alone is written to files."""
    keys = {word.partition("=")[0] for word in extra}
    return table == load_table(table.name) and keys <= {*PLACES, *VARIANTS}


def publish(folder: Path, stem: str, texts: Mapping[str, str], whole: bool) -> str:
    """Write a whole table, one file per ending; return what to print, of a part its Markdown."""
    if not whole:
        return f"{texts['.md']}\na part or a variant of a table: shown, not written to {folder}"
    for ending, text in texts.items():
        store.write_atomically(folder / f"{stem}{ending}", text)
    return "\n".join(f"wrote {folder / stem}{ending}" for ending in texts)


def texts(results: TableResults, folder: Path, profile: Profile) -> dict[str, str]:
    """Return a table's files by the ending of their names; ``folder`` has the predictions."""
    cells, notes, tests = build(results), notes_of(results), compare(results, folder)
    title, opening = heading(results.table, profile, results.conditions)
    about, best = caption(results, cells), score_grid(results, cells, profile.name)
    last = score_grid(results, cells, profile.name, "last")
    compared = comparison_grid(tests)
    bullets = [f"- {markdown(note)}" for note in notes]
    page = [
        *opening,
        *("## Best validation score seen, as the paper reports", "", about, "", *grid(best), ""),
        *([*bullets, ""] if bullets else []),
        *("## Score after the last step", "", *grid(last), ""),
        *(["## Differences", "", HOW_COMPARED, "", *grid(compared), ""] if compared[1:] else []),
    ]
    return {
        ".csv": cells.to_csv(index=False, lineterminator="\n"),
        ".md": "\n".join(page),
        ".tex": tex_float(f"{title} {about}", best, notes),
        "_tests.csv": tests.to_csv(index=False, lineterminator="\n"),
    }


def heading(table: Table, profile: Profile, conditions: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return title and profile's note, for LaTeX, and as the first lines of a Markdown file."""
    named = "".join(f", {name} {value}" for name, value in conditions.items())
    title = f"{table.title} (profile {profile.name}{named})"
    note = f"Profile {profile.name}: {profile.note}"
    lines = [f"# Table {table.table}: {markdown(title)}", "", f"**{markdown(note)}**", ""]
    return f"{title}. {note}", lines


def caption(results: TableResults, cells: pd.DataFrame) -> str:
    given = results.seeds
    seeds = sorted(set(given or (int(s) for text in cells["seeds"] for s in text.split())))
    most = int(cells["n"].max()) if given is None else len(seeds)
    named = f" (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})" * bool(seeds)
    many = f"mean ± standard deviation of n = {most} runs per cell"
    runs = many if most > 1 else "one run per cell"
    return (
        f"Percent, {runs}{named}. (n/planned; why) marks a cell that lacks runs; failed and "
        "diverged runs are not averaged in. Parameters: the adapter's, before pruning and without "
        "the head, and their share of encoder and head. Kept: those left after pruning."
    )


def score_grid(
    results: TableResults, cells: pd.DataFrame, profile: str, which: str = "best"
) -> Grid:
    """Return the printed table: a head, then per row ours, the paper's and the difference.

    Only the ``paper`` profile shows the difference: in the others, encoder and data differ.
    """
    table = results.table
    mean, std = ("mean", "std") if which == "best" else ("last_mean", "last_std")
    heads = [
        f"{TASK_NAMES[task]} ({'/'.join(METRIC_NAMES.get(m, m) for m in table.metrics_of(task))})"
        for task in table.tasks
    ]
    lines = [["Method", "Parameters", "Kept", *heads, TASK_NAMES[AVERAGE]]]
    most = int(cells["n"].max())
    for row in table.rows:
        line = cells.loc[cells["label"] == row.label]
        groups = [line.loc[line["task"] == task] for task in (*table.tasks, AVERAGE)]
        sizes = [_share(line.iloc[0]), _count(float(line["params_kept"].iloc[0]))]
        lines.append([row.label, *sizes, *(_cell(group, mean, std, most) for group in groups)])
        if which == "best" and row.paper_row:
            average = paper_average(table, row)
            shown = [_plain(group, "paper", ".2f") for group in groups[:-1]]
            shown.append(as_printed(average) if math.isfinite(average) else "–")
            lines.append(["(paper)", printed_size(table.table, row.paper_row), "", *shown])
            if profile == "paper":
                gaps = [_plain(group, "difference", "+.2f") for group in groups]
                lines.append(["(difference)", "", "", *gaps])
    return lines


def _cell(group: pd.DataFrame, mean: str, std: str, most: int) -> str:
    """Return mean and deviation of a task's metrics: "91.62/88.05 ± 0.10/0.08 (2/3; 1 failed)".

    The brackets name planned runs that cannot be averaged; "(n=2)": other cells have more runs.
    """
    if group.empty:
        return "–"
    text = _plain(group, mean, ".2f")
    if text != "–" and group[std].notna().all():
        text += f" ± {_plain(group, std, '.2f')}"
    first = group.iloc[0]
    if lost := [f"{int(first[name])} {name}" for name in LOST if first[name]]:
        return f"{text} ({int(first['n'])}/{int(first['planned'])}; {', '.join(lost)})"
    return f"{text} (n={int(first['n'])})" if 0 < first["n"] < most else text


def _plain(group: pd.DataFrame, column: str, form: str) -> str:
    if group.empty or group[column].isna().any():
        return "–"
    # Adding 0.0 turns a rounded -0.00 into +0.00.
    return "/".join(format(round(value, 2) + 0.0, form) for value in group[column])


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _share(cell: pd.Series) -> str:
    """Return the adapter's parameters and their share of the model, e.g. "1,336,896 (0.72%)"."""
    whole = float(cell["params_encoder"]) + float(cell["params_head"])
    share = f" ({100 * float(cell['params_adapter']) / whole:.2f}%)" if whole > 0 else ""
    return _count(float(cell["params_adapter"])) + share


def comparison_grid(tests: pd.DataFrame) -> Grid:
    """Return the comparisons of rows with common seeds, as text."""
    head = ["Row", "Against", "Task", "Metric", "Seeds", "Against - row", "Test by seed", "p",
            "p (Holm)", "Test by example", "p", "p (Holm)"]  # fmt: skip
    return [head] + [
        [r.label, r.against, TASK_NAMES[r.task], METRIC_NAMES.get(r.metric, r.metric),
         str(r.n), f"{r.difference:+.2f}", r.seed_test, _p(r.seed_p), _p(r.seed_p_holm),
         r.example_test, _p(r.example_p), _p(r.example_p_holm)]
        for r in tests.loc[tests["n"] > 0].itertuples()
    ]  # fmt: skip


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def notes_of(results: TableResults) -> list[str]:
    """Return the notes under a table: mixed conditions, uneven evaluations, misprints and more."""
    used = results.used()
    once = used.drop_duplicates("run")
    return [*_condition_notes(once), *_data_notes(results.table, once), *_evaluation_notes(used),
            *_early_notes(used), *_row_notes(results)]  # fmt: skip


def _condition_notes(used: pd.DataFrame) -> Iterator[str]:
    for column, name in MIXED.items():
        if len(values := _values(used, column)) > 1:
            yield f"Runs of {len(values)} {name} are mixed: {', '.join(values)}."
    dirty = used.get("dirty", pd.Series(dtype=str)).astype(str).str.lower().isin(["true", "1"])
    if dirty.any():
        yield f"{dirty.sum()} of {len(used)} runs come from a tree with uncommitted changes."


def _values(runs: pd.DataFrame, column: str) -> list[str]:
    return sorted({str(v) for v in runs.get(column, pd.Series(dtype=str)).dropna()} - {""})


def _data_notes(table: Table, used: pd.DataFrame) -> Iterator[str]:
    """Name tasks whose runs had different data, and the marks of each task's data."""
    marked: dict[str, list[str]] = {}
    for task, group in used.groupby("task", sort=False):
        versions = group.get("data_fingerprint", pd.Series(dtype=str)).nunique()
        if versions > 1:
            yield f"Runs of {task} on {versions} different versions of its data are mixed."
        if marks := ", ".join(_values(group, "data_marks")):
            marked.setdefault(marks, []).append(str(task))
    for marks, tasks in marked.items():
        where = "all tasks" if 1 < len(tasks) == len(table.tasks) else ", ".join(tasks)
        yield f"Data of {where}: {marks}."


def _evaluation_notes(used: pd.DataFrame) -> Iterator[str]:
    """Name tasks whose rows were evaluated a different number of times."""
    alike: dict[str, list[str]] = {}
    counts = used.reindex(columns=["task", "label", "evaluations"]).dropna().drop_duplicates()
    for task, group in counts.groupby("task", sort=False):
        parts = [f"{number:.0f} ({' / '.join(part['label'])})"
                 for number, part in group.groupby("evaluations")]  # fmt: skip
        if len(parts) > 1:
            alike.setdefault(", ".join(parts), []).append(str(task))
    for parts, tasks in alike.items():
        yield (f"{', '.join(tasks)}: rows had different numbers of evaluations: {parts}. "
               "The best of more evaluations tends to be higher.")  # fmt: skip


def _early_notes(used: pd.DataFrame) -> Iterator[str]:
    """Name rows and tasks whose best score comes from a step before the ranks were final."""
    steps = used.reindex(columns=["steps", "step_best"]).astype(float)
    runs = zip(store.settings(used), steps["steps"], strict=True)
    final = [_ranks_final(settings, last) for settings, last in runs]
    early = used.loc[steps["step_best"] < final].groupby("label", sort=False)
    rows = [f"{label} ({', '.join(group['task'].unique())})" for label, group in early]
    if rows:
        yield (f"Best scores from a step before the ranks were final: {'; '.join(rows)}. "
               "The ranks kept are those of the last step.")  # fmt: skip


def _ranks_final(settings: Mapping[str, Any], steps: float) -> float:
    """Return the optimiser step after which a run's ranks do not change; 0 without pruning.

    SoRA's gates move until the end, AdaLoRA's ranks until steps - tfinal, LoRA2's until that or, if
    deltaT does not divide it, one step later.
    """
    if settings.get("method.xi") or settings.get("method.xi_max"):
        return steps
    target = settings.get("method.target_r")
    if target in (None, settings.get("method.init_r", settings.get("method.r"))):
        return 0.0
    frozen = steps - settings["method.tfinal"]
    late = settings.get("method.k") is not None and frozen % settings.get("method.deltaT", 1)
    return frozen + bool(late)


def _row_notes(results: TableResults) -> Iterator[str]:
    """Name seeds with several runs, and averages that the paper misprints."""
    table = results.table
    for row in table.rows:
        for task, cell in results.cells[row.id].items():
            if ambiguous := cell.lost["ambiguous"]:
                runs = ", ".join(cell.repeated)
                yield (f"{row.label}, {task}: {ambiguous} seed(s) have several runs and are not "
                       f"averaged ({runs}): remove the outdated runs.")  # fmt: skip
        paper = printed(table, row)
        average, recomputed = paper.get((AVERAGE, AVERAGE), math.nan), paper_average(table, row)
        whole = {task for task, _ in paper} - {AVERAGE} == set(table.tasks)
        if whole and abs(average - recomputed) > 0.0051:
            yield (f"{row.label}: the paper prints an average of {average:.2f}, its cells give "
                   f"{as_printed(recomputed)}, which is used here.")  # fmt: skip
