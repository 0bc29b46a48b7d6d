"""Test each row of a table against its reference row, paired by seed and by example."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pyarrow as pa

from lora2.records.store import readable, write_atomically
from lora2.tables import stats
from lora2.tables.build import TableResults

COLUMNS = ["label", "against", "task", "metric", "n", "difference", "seed_test", "seed_p",
           "seed_p_holm", "example_test", "example_p", "example_p_holm"]  # fmt: skip
# Predictions are not committed: the p-values computed from them are saved in this file. The
# difference of two runs' scores tells other models of the same names apart.
SAVED = "example_tests.csv"
KEY = ["first", "second", "metric", "difference"]
Saved = dict[tuple[str, str, str, float], float]


def compare(results: TableResults, folder: Path) -> pd.DataFrame:
    """Return a line per row, task and metric: reference minus row over common seeds, and p-values.

    Tests by seed ask whether two training recipes differ, tests by example whether two trained
    models differ on this validation set: by the predictions in ``folder``/runs, or without them
    example_tests.csv. Each kind is one family for Holm's correction (``*_holm``).
    """
    table, saved = results.table, _read_saved(folder / SAVED)
    before = dict(saved)
    lines = [
        {"label": row.label, "against": other.label, "task": task, "metric": metric}
        | _tests(metric, *(results.cells[r.id][task].finished for r in (other, row)), folder, saved)
        for row in table.rows
        if (other := table.reference(row)) is not None
        for task in table.tasks
        for metric in table.metrics_of(task)
    ]
    if saved != before:
        values = pd.DataFrame([(*key, p) for key, p in sorted(saved.items())], columns=[*KEY, "p"])
        write_atomically(folder / SAVED, values.to_csv(index=False, lineterminator="\n"))
    frame = pd.DataFrame(lines, columns=[c for c in COLUMNS if not c.endswith("_holm")])
    for kind in ("seed_p", "example_p"):
        frame[f"{kind}_holm"] = stats.holm(frame[kind].tolist())
    return frame[COLUMNS]


def _tests(
    metric: str, first: pd.DataFrame, second: pd.DataFrame, folder: Path, saved: Saved
) -> dict[str, object]:
    """Test one metric over the seeds that both cells have."""
    seeds, column = first.index.intersection(second.index), f"best_{metric}"
    a, b = (cell.reindex(columns=[column]).loc[seeds, column] for cell in (first, second))
    gaps = 100.0 * (a - b).to_numpy(float)
    by_seed = stats.by_seed(gaps)
    pairs = [(first.loc[seed], second.loc[seed]) for seed in seeds]
    if not pairs and len(first) == len(second) == 1:
        # One run each, of different seeds (the public RTE script uses another).
        pairs = [(first.iloc[0], second.iloc[0])]
    values = [_example_p(metric, *pair, folder, saved) for pair in pairs]
    tested = [p for p in values if p is not None and not math.isnan(p)]
    why = "their run folders are not here" if None in values else "no common predictions"
    name = "exact McNemar" if metric.endswith("accuracy") else "paired bootstrap"
    several = f"{len(tested)} seed{'s' * (len(tested) > 1)}"
    difference = float(gaps.mean()) if len(gaps) else math.nan
    return {"n": len(seeds), "difference": difference, "seed_test": by_seed.name,
            "seed_p": by_seed.p, "example_p": stats.merge(tested),
            "example_test": f"{name} ({several})" if tested else f"none ({why})"}  # fmt: skip


def _example_p(
    metric: str, first: pd.Series, second: pd.Series, folder: Path, saved: Saved
) -> float | None:
    """Test two runs by example: exact McNemar for accuracies, else a paired bootstrap.

    NaN if their examples differ; None if their predictions are neither here nor in ``saved``.
    """
    names, column = (first["run"], second["run"]), f"best_{metric}"
    key = (*names, metric, float(first[column]) - float(second[column]))
    ours, theirs = (read_predictions(folder, name, metric) for name in names)
    if ours is None or theirs is None:
        return saved.get(key)
    saved[key] = math.nan
    if ours.index.equals(theirs.index) and (ours["label"] == theirs["label"]).all():
        label, a, b = (x.to_numpy() for x in (ours["label"], ours["best"], theirs["best"]))
        saved[key] = (stats.mcnemar(a == label, b == label) if metric.endswith("accuracy")
                      else stats.paired_bootstrap(metric, label, a, b))  # fmt: skip
    return saved[key]


def read_predictions(folder: Path, run: str, metric: str) -> pd.DataFrame | None:
    """Read the validation predictions of a run for one metric, by split and idx; None if absent."""
    path = folder / "runs" / run / "predictions.parquet"
    if not path.is_file():
        return None
    remedy = "remove the folder and repeat the run"
    with readable(f"{path} cannot be read", remedy, pa.ArrowException, OSError):
        frame = pd.read_parquet(path, columns=["idx", "split", "label", "best"])
    if metric.startswith(("matched_", "mismatched_")):
        frame = frame.loc[frame["split"].str.endswith("_" + metric.split("_")[0])]
    return frame.set_index(["split", "idx"]).sort_index()


def _read_saved(path: Path) -> Saved:
    if not path.is_file():
        return {}
    text = {"first": str, "second": str}
    with readable(f"{path} is damaged", "remove it", KeyError):
        frame = pd.read_csv(path, dtype=text)
        return frame.set_index(KEY)["p"].to_dict()
