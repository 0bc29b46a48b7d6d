"""Run folders as the driver writes them, with numbers chosen by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lora2.paper.numbers import TASK_METRICS
from lora2.records.store import settings as settings_of
from lora2.sweep.table import Row, Table
from lora2.tables.build import TableResults, fill
from lora2.tables.figure3 import SYMBOLS


def ranks(r: int = 8, layers: int = 2, keep: Mapping[tuple[int, str], int] | None = None):
    """A run's ranks.csv: half of every matrix kept unless ``keep`` says otherwise."""
    keep = keep or {}
    lines = [
        (f"layer.{layer}.{matrix}", layer, matrix, i, i < keep.get((layer, matrix), r // 2))
        for layer in range(layers)
        for matrix in SYMBOLS
        for i in range(r)
    ]
    return pd.DataFrame(lines, columns=["module", "layer", "matrix", "index", "kept"])


def predictions(label: np.ndarray, best: np.ndarray, split: str = "validation") -> pd.DataFrame:
    columns = {"idx": np.arange(len(label)), "split": split, "label": label}
    return pd.DataFrame({**columns, "best": best, "last": best})


def make_results(
    runs: pd.DataFrame,
    rows: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    title: str = "",
    **more: Any,
) -> TableResults:
    """Table 1 of ``rows``, filled with ``runs``; ``against`` is a label here.

    The runs of a row are all of its method, or with ``k`` in it those with that k.
    """
    ids = {row["label"]: f"row{place}" for place, row in enumerate(rows)}
    table_rows, runs_of = [], {}
    for row in rows:
        own = runs["method"] == row["method"]
        if "k" in row:
            own &= np.array([one.get("method.k") == row["k"] for one in settings_of(runs)])
        fields = {key: value for key, value in row.items() if key not in ("k", "against")}
        id, against = ids[row["label"]], ids.get(row.get("against", ""))
        table_rows.append(Row(id=id, against=against, **fields))
        runs_of[id] = runs.loc[own]
    table = Table(name="1", kind="scores", table=1, title=title, encoder="deberta-v3-base",
                  tasks=list(tasks), rows=table_rows)  # fmt: skip
    return fill(table, runs_of, **more)


def make_run(
    profile_dir: Path,
    name: str,
    *,
    task: str = "rte",
    method: str = "lora2",
    seed: int = 0,
    score: float | Mapping[str, float] = 0.8,
    last: float | None = None,
    status: str = "finished",
    settings: Mapping[str, Any] | None = None,
    guesses: pd.DataFrame | None = None,
    **columns: Any,
) -> Path:
    """Write one folder. ``score`` is a fraction, for all metrics of the task or by metric;
    ``last`` defaults to 0.01 below; ``settings`` are those of the method."""
    folder = profile_dir / "runs" / name
    folder.mkdir(parents=True)
    row: dict[str, Any] = dict(
        run=name, schema=1, status=status, error="", profile=profile_dir.name, protocol="public",
        backbone="embedded", task=task, method=method, seed=seed,
        config_hash=name, params_adapter=167616, params_kept=60000, params_head=592130,
        params_encoder=183831552, steps=100, seconds_per_step=0.5, train_seconds=50.0,
        batch_size=32, precision="fp32", device="cpu", commit="abc123", dirty=False,
        python="3.11.9", torch="2.13.0", transformers="5.23.0", peft="0.21.2", datasets="4.0.0",
        accelerate="1.10.0", backbone_revision="r1", data_fingerprint="f1", data_marks="",
    )  # fmt: skip
    if status == "finished":
        scores = score if isinstance(score, Mapping) else dict.fromkeys(TASK_METRICS[task], score)
        for metric, value in scores.items():
            row[f"best_{metric}"] = value
            row[f"last_{metric}"] = value - 0.01 if last is None else last
    pd.DataFrame([{**row, **columns}]).to_csv(folder / "metrics.csv", index=False)
    config = {
        "task": task,
        "seed": seed,
        "protocol": "public",
        "method": {"name": method, **(settings or {})},
        "backbone": {"name": "embedded", "path": "/somewhere/on/this/machine"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ranks().to_csv(folder / "ranks.csv", index=False)
    if guesses is not None:
        guesses.to_parquet(folder / "predictions.parquet")
    (folder / "status").write_text(f"{status}\n", encoding="utf-8")
    return folder
