"""How a study was run: its protocol as one table, the rates tried and chosen as another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora2.glue.tasks import TASKS
from lora2.report.escape import grid as markdown_grid
from lora2.report.render import TASK_NAMES
from lora2.report.study_data import Results
from lora2.report.study_tables import DASH, Grid, title

VERSIONS = ("python", "torch", "transformers", "peft", "datasets", "accelerate")


def protocol(results: Results) -> list[str]:
    """What was run and how, as one table, and the rates tried and chosen as another."""
    runs = results.runs.loc[results.runs["status"] == "finished"]
    settings = [json.loads(text) for text in runs["config"]]
    study = results.study
    lines: Grid = [["Question", "Answer"]]
    lines += [
        ["study", f"{study.name} (configs/study/{study.name}.yaml): {study.note}"],
        ["encoder", _encoder(runs)],
        *[[f"data of {TASK_NAMES[task]}", _data(results, task)] for task in study.tasks],
        *[[f"budget of {TASK_NAMES[task]}", _budget(runs, settings, task)] for task in study.tasks],
        ["training protocol", _values(runs["protocol"])],
        *[[f"seeds of {title(t)}", _seeds(results, t)] for t in dict.fromkeys(results.runs.table)],
        ["rates", _selection(results)],
        [
            "score",
            "the best evaluation on the validation split (as in the paper), and the last",
        ],
        ["precision", _values(runs["precision"])],
        ["device", f"{_values(runs['device'])}; torch threads {_values(runs['torch_threads'])}"],
        ["versions", ", ".join(f"{name} {_values(runs[name])}" for name in VERSIONS)],
        ["commit", _values(runs["commit"]) + _dirty(runs)],
    ]
    return [*markdown_grid(lines), "", *markdown_grid(_rates(results))]


def _values(column: pd.Series) -> str:
    """The distinct values of a column, whole numbers without a point."""
    texts = [f"{one:g}" if isinstance(one, float) else str(one) for one in column.dropna()]
    return ", ".join(dict.fromkeys(text for text in texts if text)) or "not recorded"


def _encoder(runs: pd.DataFrame) -> str:
    sizes = " + head ".join(
        "/".join(f"{int(n):,}" for n in sorted(set(runs[f"params_{part}"].dropna())))
        for part in ("encoder", "head")
    )
    return (
        f"{_values(runs['backbone'])}, revision {_values(runs['backbone_revision'])}; "
        f"parameters: encoder {sizes}"
    )


def _data(results: Results, task: str) -> str:
    rows = TASKS[task].rows  # type: ignore[index]
    splits = TASKS[task].validation_splits
    official = ", ".join(f"{split} {rows[split]:,} rows" for split in ("train", *splits))
    own = results.runs.loc[results.runs["task"] == task, "data_fingerprint"].dropna()
    prints = ", ".join(dict.fromkeys(one[:12] for one in own.astype(str) if one))
    mark = results.mark(task)
    return f"{official}; fingerprint {prints}" + (f"; note: {mark}" if mark else "")


def _budget(runs: pd.DataFrame, settings: Sequence[Mapping[str, Any]], task: str) -> str:
    own = runs["task"] == task
    if not own.any():
        return DASH
    mine = [one for one, is_own in zip(settings, own, strict=True) if is_own]

    def each(key: str) -> str:
        return _values(pd.Series([one.get(key) for one in mine], dtype=object))

    return (
        f"{_values(runs.loc[own, 'steps'])} steps of {_values(runs.loc[own, 'batch_size'])} rows, "
        f"an evaluation every {each('train.eval_steps')} steps, at most "
        f"{each('train.max_seq_length')} tokens, schedule {each('train.lr_scheduler')}"
    )


def _seeds(results: Results, table: str) -> str:
    own = results.runs.loc[results.runs["table"] == table]
    lost = own.loc[own["status"] != "finished", "status"].value_counts()
    said = "".join(f"; {n} {status}" for status, n in lost.items())
    return f"{', '.join(str(seed) for seed in sorted(set(own['seed'])))}{said}"


def _selection(results: Results) -> str:
    study = results.study
    held = ", ".join(f"{rows:,} of {TASK_NAMES[task]}" for task, rows in study.holdout.items())
    return (
        f"one for each {study.select.replace('-', ' and ')}, the best holdout score summed over "
        f"what shares it; rows held out of train: {held}; seed {study.selection_seed}; the "
        "validation split is not read; every candidate in rates.csv"
    )


def _dirty(runs: pd.DataFrame) -> str:
    changed = runs["dirty"].astype(str).str.lower().isin(["true", "1"]).sum()
    return f" ({changed} runs from a tree with changes)" if changed else ""


def _rates(results: Results) -> Grid:
    """A line per group that shares a rate: its grid, its choice, whether that lies at an end."""
    frame, study = results.rates, results.study
    group = [
        " ".join(study.group(one["method"], one["row"], one["task"]))
        for one in frame.to_dict("records")
    ]
    lines: Grid = [["Rate of", "Chosen on", "Grid", "Sums of best holdout scores", "Chosen"]]
    for name, own in frame.groupby(pd.Series(group, index=frame.index), sort=False):
        sums = own.groupby("learning_rate")["sum"].first()
        chosen = float(own.loc[own["chosen"], "learning_rate"].iloc[0])
        end = " (an end of the grid)" if chosen in (sums.index.min(), sums.index.max()) else ""
        runs = dict.fromkeys(f"{one.row} on {TASK_NAMES[one.task]}" for one in own.itertuples())
        totals = [f"{one:.2f}" if math.isfinite(one) else "diverged" for one in sums]
        grid = [f"{rate:g}" for rate in sums.index]
        row = [str(name), ", ".join(runs), ", ".join(grid), ", ".join(totals)]
        lines.append([*row, f"{chosen:g}{end}"])
    return lines
