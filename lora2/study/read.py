"""Write and read a study's results folder: written after every part, read by the report.

runs.csv and selection/runs.csv: every run. rates.csv: every rate tried. scores.csv: every final
run. curves.csv: its evaluations. predictions.parquet: its last predictions.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lora2.records import store
from lora2.records.files import replacing
from lora2.records.store import HISTORY
from lora2.study.select import Choice
from lora2.study.spec import Part, Study
from lora2.tables.make import matching

SCORES = ["part", "row", "task", "steps", "seed", "learning_rate", "run", "score_best", "step_best",
          "score_last", "params_adapter", "params_kept", "train_seconds"]  # fmt: skip
CURVES = ["part", "row", "seed", "run", "step", "score", "train_loss", "eval_loss"]


def collect(study: Study, choices: Sequence[Choice], folder: Path, extra: Sequence[str]) -> None:
    """Write the CSVs of the parts in ``choices``; lines of other parts are kept."""
    store.collect(folder / "selection")
    runs = store.collect(folder)
    parts = {choice.part.name: choice.part for choice in choices}
    scores = pd.concat([_finals(study, p, choices, runs, extra) for p in parts.values()])
    _update(folder / "rates.csv", [choice.tried for choice in choices], ["part", "row"])
    every = _update(folder / "scores.csv", [scores], ["part", "row"])
    empty = pd.DataFrame(columns=CURVES)
    curves = [_curve(folder, line) for line in scores.to_dict("records")]
    _update(folder / "curves.csv", [*curves, empty], ["part", "run"])
    _write_predictions(folder, every["run"].unique())


def read(folder: Path, name: str) -> pd.DataFrame:
    """Return one of the CSVs.

    Raises:
        StoreError: it is missing.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise store.StoreError(f"{path} is missing: run the study, or name its results folder")
    return pd.read_csv(path, float_precision="round_trip")


def _finals(
    study: Study, part: Part, choices: Sequence[Choice], runs: pd.DataFrame, extra: Sequence[str]
) -> pd.DataFrame:
    """Return a line for every finished final run of a part."""
    rates = {choice.row: choice.rate for choice in choices if choice.part.name == part.name}
    finished = runs.loc[runs["status"] == "finished"]
    by_name = finished.set_index("run")
    lines = []
    for row in part.rows:
        rate = rates[study.source(row)]
        jobs = {seed: study.job(part, row, rate, seed, extra) for seed in part.seeds}
        names = matching(list(jobs.values()), finished)
        for seed, job in jobs.items():
            if name := names.get(job.name):
                planned = {"part": part.name, "row": row, "task": part.task, "steps": part.steps,
                           "seed": seed, "learning_rate": rate, "run": name}  # fmt: skip
                lines.append({**by_name.loc[name].to_dict(), **planned})
    return pd.DataFrame(lines, columns=SCORES)


def _update(path: Path, fresh: Sequence[pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Replace the lines of the file whose ``keys`` are in ``fresh``; return all its lines."""
    frame = pd.concat(fresh)
    if path.is_file():
        old = read(path.parent, path.stem)
        replaced = set(map(tuple, frame[keys].to_numpy()))
        others = old.loc[[tuple(key) not in replaced for key in old[keys].to_numpy()]]
        frame = pd.concat([part for part in (others, frame) if len(part)] or [frame])
    store.write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))
    return frame


def _curve(folder: Path, line: dict) -> pd.DataFrame:
    """Return the evaluations of a run; none if its folder is not here."""
    path = folder / "runs" / line["run"] / HISTORY
    if not path.is_file():
        return pd.DataFrame(columns=CURVES)
    where = {key: line[key] for key in ("part", "row", "seed", "run")}
    frame = pd.read_csv(path, float_precision="round_trip")
    return frame.assign(**where).reindex(columns=CURVES)


def _write_predictions(folder: Path, runs: Sequence[str]) -> None:
    """Write predictions.parquet: run and its last predictions, int8 classes or float32 scores."""
    path, kept = folder / "predictions.parquet", {}
    if path.is_file():
        frame = pd.read_parquet(path)
        kept = dict(zip(frame["run"], frame["last"], strict=True))
    for run in runs:
        source = folder / "runs" / run / "predictions.parquet"
        if source.is_file():
            last = pd.read_parquet(source, columns=["last"])["last"].to_numpy()
            classes = bool((last == np.round(last)).all())
            kept[run] = last.astype(np.int8 if classes else np.float32)
    frame = pd.DataFrame({"run": list(kept), "last": [values.tolist() for values in kept.values()]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    with replacing(path) as file:
        file.write(buffer.getvalue())
