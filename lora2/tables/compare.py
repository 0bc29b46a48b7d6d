"""Each row of a table against LoRA2: paired by seed and paired by example."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from lora2.records.store import StoreError
from lora2.tables import stats
from lora2.tables.plan import Cell, Plan, cells

ABSENT = "none (their run folders are not here)"
SAME = ["label", "against", "task", "metric", "n"]  # and the difference: a line of the same runs
COLUMNS = ["label", "against", "task", "metric", "n", "difference", "seed_test", "seed_p",
           "seed_p_holm", "example_test", "example_p", "example_p_holm"]  # fmt: skip


def read_predictions(profile_dir: Path, run: str, metric: str) -> pd.DataFrame | None:
    """Validation predictions of a run for one metric, indexed by split and idx; None if absent.

    ``matched_accuracy`` takes the matched split alone, ``mismatched_accuracy`` the other.
    """
    path = profile_dir / "runs" / run / "predictions.parquet"
    if not path.is_file():
        return None
    try:
        frame = pd.read_parquet(path, columns=["idx", "split", "label", "best"])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({' '.join(str(error).split())}): remove the folder and repeat "
            "the run"
        ) from error
    if metric.startswith(("matched_", "mismatched_")):
        frame = frame.loc[frame["split"].str.endswith("_" + metric.split("_")[0])]
    return frame.set_index(["split", "idx"]).sort_index()


def _example_p(metric: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """One seed's p-value; NaN if the two runs were not evaluated on the same examples."""
    if not ours.index.equals(theirs.index) or not (ours["label"] == theirs["label"]).all():
        return math.nan
    label, first, second = (x.to_numpy() for x in (ours["label"], ours["best"], theirs["best"]))
    if metric.endswith("accuracy"):
        return stats.mcnemar(first == label, second == label)
    return stats.paired_bootstrap(metric, label, first, second)


def by_example(
    profile_dir: Path | None, metric: str, pairs: list[tuple[str, str]]
) -> stats.Outcome:
    """Test the best predictions of paired runs (ours, theirs), one pair per seed, merged.

    Exact McNemar for accuracies, paired bootstrap for the correlations and F1. Run folders are
    needed: they hold the predictions.
    """
    if profile_dir is None:
        return stats.Outcome("none", math.nan)
    values, absent = [], False
    for ours, theirs in pairs:
        frames = [read_predictions(profile_dir, run, metric) for run in (ours, theirs)]
        if frames[0] is None or frames[1] is None:
            absent = True
        else:
            values.append(_example_p(metric, frames[0], frames[1]))
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return stats.Outcome(ABSENT if absent else "none (no common predictions)", math.nan)
    name = "exact McNemar" if metric.endswith("accuracy") else "paired bootstrap"
    return stats.Outcome(
        f"{name} ({len(values)} seed{'s' * (len(values) > 1)})", stats.merge(values)
    )


def _line(task: str, metric: str, ours: Cell, theirs: Cell, folder: Path | None) -> dict:
    """The tests of one metric over the seeds that both cells have."""
    first, second = ours.finished, theirs.finished
    seeds = first.index.intersection(second.index)
    column = f"best_{metric}"
    gaps = np.array([])
    if len(seeds):
        gaps = 100.0 * (first.loc[seeds, column] - second.loc[seeds, column]).to_numpy(float)
    seed_test = stats.by_seed(gaps)
    pairs = [(str(first.loc[s, "run"]), str(second.loc[s, "run"])) for s in seeds]
    if not pairs and len(first) == len(second) == 1:
        # One run each, of different seeds (the public RTE script has its own): the two trained
        # models can still be compared on the same examples.
        pairs = [(str(first["run"].iloc[0]), str(second["run"].iloc[0]))]
    example = by_example(folder, metric, pairs)
    return {
        "task": task,
        "metric": metric,
        "n": len(seeds),
        "difference": float(gaps.mean()) if len(gaps) else math.nan,
        "seed_test": seed_test.name,
        "seed_p": seed_test.p,
        "example_test": example.name,
        "example_p": example.p,
    }


def compare(plan: Plan, runs: pd.DataFrame, profile_dir: Path | str | None = None) -> pd.DataFrame:
    """One line per row, task and metric: LoRA2 minus the row over common seeds, with p-values.

    ``against`` is ``Plan.reference``. ``*_holm`` are corrected over all lines of the table, the
    tests by seed and those by example as a family each. By-example tests say whether two trained
    models differ on this validation set, by-seed tests whether two training recipes do. A test by
    example whose run folders are gone is taken from the table's own file in ``profile_dir``.
    """
    folder = None if profile_dir is None else Path(profile_dir)
    table = cells(plan, runs)
    lines = [
        {"label": row.label, "against": other.label}
        | _line(task, metric, table[other.label][task], table[row.label][task], folder)
        for row in plan.rows
        if (other := plan.reference(row)) is not None
        for task in plan.tasks
        for metric in plan.metrics_of(task)
    ]
    frame = pd.DataFrame(lines, columns=[c for c in COLUMNS if not c.endswith("_holm")])
    if folder is not None:
        frame = _remembered(frame, folder / f"table{plan.table}{plan.suffix}_tests.csv")
    for kind in ("seed_p", "example_p"):
        frame[f"{kind}_holm"] = stats.holm(frame[kind].tolist())
    return frame[COLUMNS]


def _remembered(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """``frame`` with the tests by example that ``path`` holds of the same lines, where it has none.

    Predictions are not committed: without this, a clone would lose what it cannot test again.
    """
    gone = frame["example_test"] == ABSENT
    if not gone.any() or not path.is_file():
        return frame
    old = pd.read_csv(path, float_precision="round_trip")
    if not {*SAME, "difference", "example_test", "example_p"} <= set(old.columns):
        return frame
    found = frame[[*SAME, "difference"]].merge(
        old.drop_duplicates(SAME), how="left", on=SAME, suffixes=("", "_then")
    )
    same = np.isclose(found["difference"], found["difference_then"], rtol=0, atol=1e-9)
    take = gone.to_numpy() & same & found["example_test"].notna().to_numpy()
    for column in ("example_test", "example_p"):
        frame[column] = frame[column].where(~take, found[column].to_numpy())
    return frame
