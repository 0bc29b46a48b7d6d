"""Load and check one task's rows, from the hub, a folder or the embedded grammar."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lora2 import hub
from lora2.glue.checks import GlueDataError, check_row_count, check_table
from lora2.glue.tasks import REPOSITORY, TEST_ROWS, Task, get_task

Source = Literal["hub", "folder", "embedded"]
LAYOUT = "DIR/<task>/<split>.parquet"


@dataclass(frozen=True)
class GlueData:
    """Training and validation rows of one task.

    ``validation`` has one entry per validation split, in order (MNLI: matched, mismatched); with
    ``holdout``, the rows held out of train instead (MNLI: one half for each split).
    ``marks`` say why results are not comparable with published GLUE numbers; empty if they are.
    ``fingerprint`` is a sha256 over texts and labels, equal for equal rows from any source;
    ``revision`` is the hub's commit, if known.
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
        train_rows: maximum number of training rows; if there are more, ``seed`` draws them without
            replacement, in file order.
        holdout: number of the remaining training rows, drawn by ``seed``, that are not trained on
            and replace the validation split(s), which are not read.

    Raises:
        GlueDataError: data that is not available, or not what it is named.
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
        train_frame = _take(train_frame, rows)
    if holdout is None:
        validation_frames = dict(zip(validation_splits, frames[1:], strict=True))
    else:
        train_frame, validation_frames = _hold_out(train_frame, task, holdout, seed)
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


def load_test(task_name: str, source: Source, dir: str | Path | None) -> dict[str, pd.DataFrame]:
    """Load the splits that the GLUE server scores; their labels are hidden (-1) and not checked.

    Embedded test splits have 400 rows (300 for RTE), with sentences that are in no other split.

    Raises:
        GlueDataError: data that is not available, or not what it is named.
    """
    task, frames = get_task(task_name), {}
    for split, rows in TEST_ROWS[task_name].items():
        asked, name = (replace(task, name="ax"), "test") if split == "ax" else (task, split)
        if source == "embedded":
            asked, name = task, split
        (table,), (where,), _ = _read(asked, source, dir, (name,))
        table = check_table(table, task, where, hidden=True)
        if source != "embedded" and table.num_rows != rows:
            raise GlueDataError(
                f"{where} has {table.num_rows:,} rows, but the GLUE server expects {rows:,}"
            )
        frames[split] = table.replace_schema_metadata(None).to_pandas()
    return frames


def fingerprint(task: Task, frames: list[pd.DataFrame]) -> str:
    """Hash task name, row counts, texts and labels of ``frames``, in order (sha256).

    ``idx`` is not hashed: partial files number their rows differently.
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
    """Check the options against each other; return the train and validation splits to read."""
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
    """Return the tables of ``splits``, their names for messages, and the revision."""
    if source == "hub":
        tables, revision = read_hub(task, splits)
        return tables, [f"{REPOSITORY} {task.name} {split}" for split in splits], revision
    if source == "folder":
        assert dir is not None  # checked by _choose
        pairs = [_read_file(Path(dir).expanduser(), task, split) for split in splits]
        return [table for table, _ in pairs], [path for _, path in pairs], None
    from lora2.embedded import make_split

    tables = [
        pa.Table.from_pandas(make_split(task.name, split), preserve_index=False) for split in splits
    ]
    return tables, [f"embedded {task.name} {split}" for split in splits], None


def _read_file(folder: Path, task: Task, split: str) -> tuple[pa.Table, str]:
    """Read ``<folder>/<task>/<split>.parquet``, or the shards of a clone of ``nyu-mll/glue``."""
    task_folder = folder / task.name
    for path in (folder, task_folder):
        if path.exists() and not path.is_dir():
            raise GlueDataError(f"{path} is not a folder; data.dir=DIR wants {LAYOUT}")
    if not folder.exists():
        raise GlueDataError(f"data.dir={folder} does not exist; it should hold {LAYOUT}")
    if not task_folder.exists():
        hint = ""
        if any(folder.glob("*.parquet")):
            hint = f"; did you mean its parent, data.dir={folder.absolute().parent}?"
        raise GlueDataError(f"{folder} has no folder {task.name}; data.dir wants {LAYOUT}{hint}")
    path = task_folder / f"{split}.parquet"
    files = [path] if path.exists() else sorted(task_folder.glob(f"{split}-*-of-*.parquet"))
    if not files:
        raise GlueDataError(_missing(task_folder, task, split))
    try:
        tables = [pq.read_table(file, partitioning=None) for file in files]
        return pa.concat_tables(tables), str(files[0])
    except (pa.ArrowException, OSError) as error:
        raise GlueDataError(
            f"{files[0]} cannot be read as parquet ({error}): it is cut short or is another kind "
            "of file; copy it again"
        ) from error


def _missing(task_folder: Path, task: Task, split: str) -> str:
    files = sorted(path.stem for path in task_folder.glob("*.parquet"))
    official = ""
    if split in task.rows:
        official = f", the official {task.name} {split} split ({task.rows[split]:,} rows)"
    has = ", ".join(files) or "no parquet file"
    message = f"{task_folder} has no {split}.parquet{official}; it has {has}"
    option = "train" if split == "train" else "validation"
    other = "train_subset" if split == "train" else "validation_unofficial"
    if split in task.rows and other in files:
        message += (
            f". To use {other} instead, type data.{option}={other}: every result is then marked "
            "with it and is not comparable with published GLUE results"
        )
    return message


def read_hub(task: Task, splits: tuple[str, ...]) -> tuple[list[pa.Table], str | None]:
    """Load ``splits`` with ``datasets.load_dataset``, from its cache if the hub is not available.

    Returns the tables, and the data set's revision (a commit hash) if known.

    Raises:
        GlueDataError: no network and no cached copy; the message gives the three ways out.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    revision: str | None = None
    reason: str | None = "HF_HUB_OFFLINE=1 is set"
    if not is_offline_mode():
        seconds = hub.PROBE_SECONDS
        revision, reason = hub.ask(lambda: HfApi().dataset_info(REPOSITORY, timeout=seconds).sha)
    try:
        with _cache_only(revision is None):
            parts = load_dataset(REPOSITORY, task.name, split=list(splits), revision=revision)
    # `datasets` raises many unrelated exceptions here; all mean that the data was not loaded.
    except Exception as error:
        why = f"({type(error).__name__}: {error})"
        if revision is None:
            why = f"({reason}) and is not in the local cache"
        raise GlueDataError(
            f"{task.name} could not be loaded from {REPOSITORY} {why}. "
            f"{hub.ways_out([(REPOSITORY, 'dataset')])}"
        ) from error
    tables = [
        part.with_format("arrow")[:].replace_schema_metadata(part.features.arrow_schema.metadata)
        for part in parts
    ]
    if revision is None and parts[0].cache_files:  # `datasets` names their folder by the commit
        folder = Path(parts[0].cache_files[0]["filename"]).parent.name
        match = re.search(r"[0-9a-f]{40}", folder)
        revision = match and match.group()
    return tables, revision


@contextmanager
def _cache_only(on: bool) -> Iterator[None]:
    """Make `datasets` look only into its cache, at once and without retries."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or on
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _hold_out(
    frame: pd.DataFrame, task: Task, rows: int, seed: int
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Split training rows into those to train on and ``rows`` held out, drawn by ``seed``.

    Both parts have the classes in the same proportions, in file order. MNLI's held-out rows are
    halved at random, one half for each of its validation splits.
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
    names = [split.replace("validation", "holdout") for split in task.validation_splits]
    parts = zip(names, np.array_split(drawn, len(names)), strict=True)
    return _take(frame, kept), {name: _take(frame, part) for name, part in parts}


def _take(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return some rows in file order, numbered from 0."""
    return frame.iloc[np.sort(rows)].reset_index(drop=True)


def _marks(
    task: Task, source: str, splits: tuple[str, ...], frames: list[pd.DataFrame]
) -> tuple[str, ...]:
    marks = ["embedded data"] if source == "embedded" else []
    for split, frame in zip(splits, frames, strict=True):
        if split == "train_subset":
            marks.append(f"train_subset ({len(frame):,} of {task.rows['train']:,} rows)")
        elif split == "validation_unofficial":
            marks.append(f"unofficial validation split ({len(frame):,} rows)")
    return tuple(marks)
