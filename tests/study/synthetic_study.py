"""A small study and runs of it that nobody trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from lora2.config.schema import as_tree
from lora2.records import store
from lora2.study.spec import Part, Study, load_study
from lora2.sweep.table import Job

ROWS = ["lora-r8", "lora2-k8"]


def small_study(**changes: object) -> Study:
    """The committed study with two rows at two budgets, or with ``changes``."""
    parts = [
        Part(name=f"cola-{steps}", task="cola", steps=steps, rows=ROWS, seeds=[1, 2, 3],
             overrides=["train.eval_steps=10"])
        for steps in (100, 200)
    ]  # fmt: skip
    return dataclasses.replace(load_study("small-cpu"), **{"parts": parts, **changes})


def record(folder: Path, jobs: Sequence[Job], score: Callable[[Job], float | str]) -> None:
    """Add finished runs to ``folder``/runs.csv; a text instead of a score is their status."""
    lines = []
    for job in jobs:
        config, outcome = job.resolved.config, score(job)
        status, value = ("finished", outcome) if isinstance(outcome, float) else (outcome, None)
        lines.append(
            {"run": job.name, "schema": store.SCHEMA, "status": status, "backbone": "minilm",
             "task": job.task, "method": config.method.name, "seed": config.seed,
             "score_best": value, "step_best": 1, "score_last": value, "params_adapter": 10,
             "params_kept": 10, "train_seconds": 1.0, "precision": "fp32", "device": "cpu",
             "commit": "abc", "profile": "small", "backbone_revision": "",
             "config": json.dumps(store.flatten(as_tree(config)))}
        )  # fmt: skip
    path = folder / "runs.csv"
    old = [store.read_csv(path)] if path.is_file() else []
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(store.as_csv(pd.concat([*old, pd.DataFrame(lines)]).drop_duplicates("run")))
