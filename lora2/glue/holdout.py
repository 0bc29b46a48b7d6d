"""Rows of train that stand for the validation split, so that a choice never looks at that."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lora2.glue.checks import GlueDataError
from lora2.glue.tasks import Task


def split_names(task: Task) -> tuple[str, ...]:
    """What the parts held out are called: ``holdout``; MNLI has one for each validation split."""
    return tuple(split.replace("validation", "holdout") for split in task.validation_splits)


def hold_out(
    frame: pd.DataFrame, task: Task, rows: int, seed: int
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Split training rows into those that stay and ``rows`` held out, drawn by ``seed``.

    Classes keep their shares in both parts; MNLI's rows are halved at random. File order is kept.

    Raises:
        GlueDataError: too few or too many rows to hold out.
    """
    from sklearn.model_selection import train_test_split

    labels = None if task.is_regression else frame["label"]
    try:
        kept, drawn = train_test_split(
            np.arange(len(frame)), test_size=rows, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise GlueDataError(
            f"data.holdout={rows} of {len(frame):,} training rows of {task.name}: {error}; type "
            "fewer than there are, and enough for a row of each class on both sides"
        ) from error
    names = split_names(task)
    parts = zip(names, np.array_split(drawn, len(names)), strict=True)
    taken = {name: _rows(frame, part) for name, part in parts}
    return _rows(frame, kept), taken


def _rows(frame: pd.DataFrame, positions: np.ndarray) -> pd.DataFrame:
    return frame.iloc[np.sort(positions)].reset_index(drop=True)
