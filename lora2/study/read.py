"""What a study leaves in its results folder, written after every part and read by the report.

runs.csv and selection/runs.csv: every run. rates.csv: every rate tried. scores.csv: every final
run. curves.csv: every evaluation of it. predictions.parquet: its answers, for tests by example.
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
    """Write the CSVs of the parts in ``choices``; what they held of other parts stays."""
    store.collect(folder / "selection")
    runs = store.collect(folder)
    tried = pd.concat([one.tried for one in choices])
    scores = pd.concat([_finals(study, part, choices, runs, extra) for part in _parts(choices)])
    rates = _keep_others(folder / "rates.csv", tried, ["part", "row"])
    every = _keep_others(folder / "scores.csv", scores, ["part", "row"])
    _write(folder / "rates.csv", rates)
    _write(folder / "scores.csv", every)
    curves = [_curve(folder, line) for _, line in scores.iterrows()]
    fresh = pd.concat([*curves, pd.DataFrame(columns=CURVES)])
    _write(folder / "curves.csv", _keep_others(folder / "curves.csv", fresh, ["part", "run"]))
    _write_predictions(folder, every["run"].unique())


def read(folder: Path, name: str) -> pd.DataFrame:
    """Return one of the CSVs.

    Raises:
        StoreError: it is not there.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise store.StoreError(f"{path} is missing: run the study, or name its results folder")
    return pd.read_csv(path, float_precision="round_trip")


def predictions(folder: Path) -> dict[str, np.ndarray]:
    """Return run -> the last predictions on the validation split, (n,): classes or scores."""
    path = folder / "predictions.parquet"
    if not path.is_file():
        return {}
    frame = pd.read_parquet(path)
    return dict(zip(frame["run"], frame["last"], strict=True))


def _parts(choices: Sequence[Choice]) -> list[Part]:
    return list({one.part.name: one.part for one in choices}.values())


def _finals(
    study: Study, part: Part, choices: Sequence[Choice], runs: pd.DataFrame, extra: Sequence[str]
) -> pd.DataFrame:
    """Return a line for every finished final run of a part."""
    rates = {one.row: one.rate for one in choices if one.part.name == part.name}
    finished = runs.loc[runs["status"] == "finished"]
    by_name = finished.set_index("run")
    lines = []
    for row in part.rows:
        rate = rates[study.source(row)]
        jobs = {seed: study.job(part, row, rate, seed, extra) for seed in part.seeds}
        names = matching(list(jobs.values()), finished)
        for seed, job in jobs.items():
            if job.name in names:
                run = by_name.loc[names[job.name]]
                own = {"part": part.name, "row": row, "task": part.task, "steps": part.steps,
                       "seed": seed, "learning_rate": rate, "run": names[job.name]}  # fmt: skip
                lines.append({**{key: run.get(key) for key in SCORES}, **own})
    return pd.DataFrame(lines, columns=SCORES)


def _keep_others(path: Path, fresh: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return ``fresh`` after the lines of the file whose ``keys`` it does not have."""
    if not path.is_file():
        return fresh
    old = pd.read_csv(path, float_precision="round_trip")
    known = set(map(tuple, fresh[keys].to_numpy()))
    others = old.loc[[tuple(key) not in known for key in old[keys].to_numpy()]]
    return pd.concat([frame for frame in (others, fresh) if len(frame)] or [fresh])


def _write(path: Path, frame: pd.DataFrame) -> None:
    store.write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))


def _curve(folder: Path, line: pd.Series) -> pd.DataFrame:
    """Return the evaluations of one run, none where its folder is gone."""
    path = folder / "runs" / line["run"] / HISTORY
    if not path.is_file():
        return pd.DataFrame(columns=CURVES)
    where = {key: line[key] for key in ("part", "row", "seed", "run")}
    frame = pd.read_csv(path, float_precision="round_trip")
    return frame.assign(**where).reindex(columns=CURVES)


def _write_predictions(folder: Path, runs: Sequence[str]) -> None:
    """Write predictions.parquet: run and its last predictions, int8 classes or float32 scores."""
    kept = predictions(folder)
    for run in runs:
        path = folder / "runs" / run / "predictions.parquet"
        if path.is_file():
            last = pd.read_parquet(path, columns=["last"])["last"].to_numpy()
            classes = bool((last == np.round(last)).all())
            kept[run] = last.astype(np.int8 if classes else np.float32)
    frame = pd.DataFrame({"run": list(kept), "last": [values.tolist() for values in kept.values()]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    with replacing(folder / "predictions.parquet") as file:
        file.write(buffer.getvalue())
