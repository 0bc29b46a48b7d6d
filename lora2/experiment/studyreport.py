"""What a study leaves behind: runs.csv, its tables and figure, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lora2.experiment import reporting
from lora2.experiment.folder import HISTORY
from lora2.experiment.study import Study
from lora2.experiment.studyruns import Part, profile_of
from lora2.report import store

CURVES = ["table", "row", "task", "seed", "run", "step", "score", "train_loss", "eval_loss"]


def write_report(
    study: Study, parts: Sequence[Part], folder: Path, notes: Sequence[str]
) -> tuple[list[Path], list[str]]:
    """Write runs.csv, curves.csv and every table that has runs; return the files and the lacks.

    ``notes`` are said under each table.

    Raises:
        StoreError: there are no runs at all.
    """
    runs = store.collect(folder)
    written, lacks = [folder / "runs.csv", write_curves(parts, folder, runs)], []
    profile = profile_of(study)
    for part in parts:
        try:
            written += reporting.report_cells(
                part.plan, part.jobs, profile, folder, part.seeds, runs, notes
            )
        except (store.StoreError, FileNotFoundError) as error:
            lacks.append(f"table {part.plan.name}: not written: {error}")
    return written, lacks


def write_curves(parts: Sequence[Part], folder: Path, runs: pd.DataFrame) -> Path:
    """Write curves.csv: every evaluation of every final run, under the first table that has it.

    ``score`` in percent points, losses as the Trainer has them, ``step`` in optimiser steps. What
    curves.csv held of a run whose folder is not here stays.
    """
    path = folder / "curves.csv"
    old = pd.read_csv(path, float_precision="round_trip") if path.is_file() else None
    frames = [pd.DataFrame(columns=CURVES)]
    names: set[str] = set()
    for part in parts:
        found = reporting.matching(part.jobs, runs)
        for job in part.jobs:
            run = found.get(job.name)
            if run is None or run in names:
                continue
            names.add(run)
            where = {
                "table": part.plan.name, "row": job.row, "task": job.task,
                "seed": job.resolved.config.seed, "run": run,
            }  # fmt: skip
            history = folder / "runs" / run / HISTORY
            if history.is_file():
                frame = pd.read_csv(history, float_precision="round_trip")
                frames.append(frame.assign(**where).reindex(columns=CURVES))
            elif old is not None:
                frames.append(old.loc[old["run"] == run].assign(**where).reindex(columns=CURVES))
    kept = [frame for frame in frames if len(frame)] or frames
    text = pd.concat(kept, ignore_index=True).to_csv(index=False, lineterminator="\n")
    store.write_atomically(path, text)
    return path
