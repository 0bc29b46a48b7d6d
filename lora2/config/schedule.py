"""How many steps a run takes, and published step counts fitted to a run of another length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lora2.glue.tasks import TASKS

# Counted in steps of the published recipe. Evaluations are never made rarer than published.
FITTED = ("method.tinit", "method.tfinal", "method.deltaT", "train.warmup_steps")
SHORTENED = ("train.eval_steps",)


def train_rows(tree: dict[str, Any]) -> int | None:
    """Return how many training examples a run sees per epoch, or None when only loading tells.

    Below one where more rows are to be held out than there are, which ``checks`` refuses. Nothing
    on disk is read but a folder's parquet footer for a subset file.
    """
    data, task = tree["data"], tree["task"]
    rows: int | None = None
    if data["source"] == "embedded":
        from lora2.embedded.grammar import ROWS

        rows = ROWS[task][0]
    elif data["train"] == "train":
        rows = TASKS[task].rows["train"]
    elif data["source"] == "folder" and data["dir"]:
        rows = _parquet_rows(Path(data["dir"]) / task / f"{data['train']}.parquet")
    if rows is None:
        return None
    return min(rows, data["train_rows"] or rows) - (data.get("holdout") or 0)


def total_steps(train: dict[str, Any], rows: int | None) -> int | None:
    """Return the optimiser steps of a run: ``max_steps``, else epochs * ceil(rows / batch_size)."""
    if train["max_steps"] is not None:
        return int(train["max_steps"])
    if rows is None:
        return None
    return max(1, math.ceil(train["num_train_epochs"] * math.ceil(rows / train["batch_size"])))


def fit(
    tree: dict[str, Any], published: dict[str, Any], typed: set[str], rows: int | None
) -> list[str]:
    """Scale the step counts of ``tree`` in place to its own length; return a note for each.

    ``published`` is the same tree before encoder and command line changed it: its step counts
    belong to its own number of steps on the official training set. A key that was typed, or
    changed since ``published``, is left as it is.
    """
    steps = total_steps(tree["train"], rows)
    recipe = total_steps(published["train"], TASKS[published["task"]].rows["train"])
    if steps is None or recipe is None:
        return []
    notes = []
    for key in FITTED + SHORTENED:
        section, name = key.split(".")
        value = tree[section].get(name)
        free = key not in typed and value == published[section].get(name)
        if not free or not isinstance(value, int) or value < 1:
            continue
        length = min(steps, recipe) if key in SHORTENED else steps
        if (fitted := max(1, value * length // recipe)) != value:
            tree[section][name] = fitted
            notes.append(
                f"{key}: {value} -> {fitted} (for {recipe:,} steps, this run has {steps:,})"
            )
    return notes


def _parquet_rows(path: Path) -> int | None:
    if not path.is_file():
        return None
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        return int(parquet.read_metadata(path).num_rows)
    except (ArrowException, OSError):
        return None  # loading says what is wrong with the file
