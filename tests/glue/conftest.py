"""Synthetic GLUE files with the official row counts, and the real ones where there are any."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lora2.glue.tasks import TASKS, Task

ROOT = Path(__file__).resolve().parents[2]


def make_frame(task: Task, rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows with random words and labels, in the official schema."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "green", "blue", "où", "naïve", "猫", "a", "."])
    columns: dict = {
        name: [" ".join(text) for text in words[rng.integers(len(words), size=(rows, 3))]]
        for name in task.text_columns
    }
    if task.is_regression:
        columns["label"] = rng.uniform(0, 5, rows).astype(np.float32)
    else:
        columns["label"] = rng.integers(task.num_labels, size=rows)
    return pd.DataFrame(columns | {"idx": np.arange(rows, dtype=np.int32)})


@cache
def _parquet(task: Task, rows: int, seed: int) -> bytes:
    content: bytes = make_frame(task, rows, seed).to_parquet()
    return content


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """``made("rte", train=None, validation=None)`` writes splits; None means official size."""

    def write(task_name: str, **rows: int | None) -> Path:
        task = TASKS[task_name]
        (tmp_path / task_name).mkdir(exist_ok=True)
        for seed, (split, count) in enumerate(rows.items()):
            content = _parquet(task, task.rows[split] if count is None else count, seed)
            (tmp_path / task_name / f"{split}.parquet").write_bytes(content)
        return tmp_path

    return write


@pytest.fixture
def real() -> Path:
    """A folder of real GLUE files: $LORA2_GLUE_DIR, else ../shared/glue beside the repository."""
    folder = Path(os.environ.get("LORA2_GLUE_DIR") or ROOT.parent / "shared" / "glue")
    if not folder.is_dir():
        pytest.skip("no real GLUE files; set LORA2_GLUE_DIR to a folder of them")
    return folder
