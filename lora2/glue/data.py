"""The data of one task: where it comes from, whether it is the official data, what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from lora2.glue import folder, hub
from lora2.glue.checks import GlueDataError, check_row_count, check_table
from lora2.glue.holdout import hold_out
from lora2.glue.tasks import Task, get_task

Source = Literal["hub", "folder", "embedded"]


@dataclass(frozen=True)
class GlueData:
    """Training and validation rows of one task.

    ``validation`` has one entry per validation split, in order (MNLI: matched, mismatched), or
    the rows held out of train in their place (``holdout``; MNLI: one half for each).
    ``marks`` name all that keeps a result from being comparable with published GLUE numbers.
    ``fingerprint`` is a sha256 over texts and labels, equal for equal rows from any source;
    ``revision`` is the hub's commit, where known.
    """

    task: Task
    source: Source
    train: pd.DataFrame
    validation: dict[str, pd.DataFrame]
    marks: tuple[str, ...]
    fingerprint: str
    revision: str | None


def load_task(
    task_name: str,
    source: Source,
    *,
    dir: str | Path | None = None,
    train: str = "train",
    validation: str | None = None,
    train_rows: int | None = None,
    holdout: int | None = None,
    seed: int = 0,
) -> GlueData:
    """Load and check one task.

    Args:
        source: "hub" (`nyu-mll/glue`), "folder" (``dir/<task>/<split>.parquet``) or "embedded".
        train: "train", or "train_subset" to use a folder's partial file.
        validation: None for the official split(s), or "validation_unofficial" for a folder's.
        train_rows: at most so many training rows, drawn without replacement by ``seed`` and kept
            in file order. Nothing is drawn where there are no more rows than that.
        holdout: so many of the training rows left by ``train_rows``, drawn by ``seed``, are not
            trained on and take the place of the validation split(s), which are not read.

    Raises:
        GlueDataError: data that cannot be had, or that is not what it is named.
    """
    task = get_task(task_name)
    train_split, validation_splits = _choose(task, source, dir, train, validation, train_rows)
    if holdout is not None and validation is not None:
        raise GlueDataError(f"data.validation={validation}: type null with data.holdout={holdout}")
    splits = (train_split, *(validation_splits if holdout is None else ()))
    tables, places, revision = _read(task, source, dir, splits)
    frames = []
    for split, table, where in zip(splits, tables, places, strict=True):
        table = check_table(table, task, where)
        if source != "embedded" and split in task.rows:
            check_row_count(table.num_rows, task, split, where)
        frames.append(table.replace_schema_metadata(None).to_pandas())
    train_frame, marks = frames[0], _marks(task, source, splits, frames)
    if train_rows is not None and train_rows < len(train_frame):
        rows = np.random.default_rng(seed).choice(len(train_frame), train_rows, replace=False)
        marks += (f"train_rows={train_rows} of {len(train_frame):,}, seeded subset (seed {seed})",)
        train_frame = train_frame.iloc[np.sort(rows)].reset_index(drop=True)
    if holdout is None:
        validation_frames = dict(zip(validation_splits, frames[1:], strict=True))
    else:
        train_frame, validation_frames = hold_out(train_frame, task, holdout, seed)
        marks += (f"scored on {holdout:,} rows held out of train",)
    return GlueData(
        task=task,
        source=source,
        train=train_frame,
        validation=validation_frames,
        marks=marks,
        fingerprint=fingerprint(task, [train_frame, *validation_frames.values()]),
        revision=revision,
    )


def fingerprint(task: Task, frames: list[pd.DataFrame]) -> str:
    """sha256 over task name, row counts, texts and labels of ``frames``, in order.

    ``idx`` is left out: partial files number their rows anew.
    """
    digest = hashlib.sha256(task.name.encode())
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        for column in task.text_columns:
            texts = [text.encode() for text in frame[column]]
            digest.update(np.array([len(text) for text in texts], dtype="<u8").tobytes())
            digest.update(b"".join(texts))
        digest.update(frame["label"].to_numpy("<f4" if task.is_regression else "<i8").tobytes())
    return digest.hexdigest()


def _choose(
    task: Task,
    source: str,
    dir: str | Path | None,
    train: str,
    validation: str | None,
    train_rows: int | None,
) -> tuple[str, tuple[str, ...]]:
    """Check the options against each other; the train split and the validation splits to read."""
    if source not in ("hub", "folder", "embedded"):
        raise GlueDataError(f"unknown data source {source!r}; type hub, folder or embedded")
    if (source == "folder") != (dir is not None):
        need = "needs" if dir is None else "cannot take"
        raise GlueDataError(f"data source {source!r} {need} data.dir=DIR")
    if train_rows is not None and train_rows < 1:
        raise GlueDataError(f"data.train_rows={train_rows}; type a number of at least 1")
    official = task.validation_splits
    partial = source == "folder"
    train_choices = ("train", "train_subset") if partial else ("train",)
    validation_choices: tuple[str, ...] = ()  # MNLI has two files, so no single name stands for it
    if len(official) == 1:
        validation_choices = (*official, "validation_unofficial") if partial else official
    if train not in train_choices:
        raise GlueDataError(
            f"data.train={train}: with source {source}, type one of {', '.join(train_choices)}"
        )
    if validation is not None and validation not in validation_choices:
        raise GlueDataError(
            f"data.validation={validation}: with source {source}, {task.name} takes "
            f"{', '.join(validation_choices) or 'none'}, or null for {' and '.join(official)}"
        )
    return train, official if validation is None else (validation,)


def _read(
    task: Task, source: str, dir: str | Path | None, splits: tuple[str, ...]
) -> tuple[list[pa.Table], list[str], str | None]:
    """Tables of ``splits``, the names to give them in messages, and the revision if known."""
    if source == "hub":
        tables, revision = hub.read_splits(task, splits)
        return tables, [f"{hub.REPOSITORY} {task.name} {split}" for split in splits], revision
    if source == "folder":
        assert dir is not None  # checked by _choose
        pairs = [folder.read_split(Path(dir).expanduser(), task, split) for split in splits]
        return [table for table, _ in pairs], [path for _, path in pairs], None
    from lora2.embedded import make_split

    tables = [
        pa.Table.from_pandas(make_split(task.name, split), preserve_index=False) for split in splits
    ]
    return tables, [f"embedded {task.name} {split}" for split in splits], None


def _marks(
    task: Task, source: str, splits: tuple[str, ...], frames: list[pd.DataFrame]
) -> tuple[str, ...]:
    rows = {split: f"{len(frame):,}" for split, frame in zip(splits, frames, strict=True)}
    marks: Mapping[str, str] = {
        "train_subset": f"train_subset ({{}} of {task.rows['train']:,} rows)",
        "validation_unofficial": "unofficial validation split ({} rows)",
    }
    embedded = ("embedded data",) if source == "embedded" else ()
    return embedded + tuple(marks[split].format(rows[split]) for split in splits if split in marks)
