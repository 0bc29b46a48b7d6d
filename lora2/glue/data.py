"""Load, check and tokenise a task's rows, from the hub, a folder or the embedded grammar."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, concatenate_datasets, config
from transformers import PreTrainedTokenizerBase

from lora2 import hub
from lora2.embedded import make_split
from lora2.glue.checks import GlueDataError, check_table
from lora2.glue.tasks import REPOSITORY, TASKS, TEST_SPLITS, Task

BATCH_ROWS = 5_000  # tokenised at once
KINDS = {"input_ids": "int32", "attention_mask": "int8", "token_type_ids": "int8"}


@dataclass(frozen=True)
class GlueData:
    """Training and validation rows of one task."""

    task: Task
    train: pd.DataFrame
    validation: dict[str, pd.DataFrame]  # by split, in order; with ``holdout`` the rows held out
    marks: tuple[str, ...]  # why results are not comparable with published GLUE numbers
    fingerprint: str  # sha256 over texts and labels, equal for equal rows from any source
    revision: str | None  # the hub's commit, if known


def load_task(
    task_name: str, source: str, *, dir: str | Path | None = None, train: str = "train",
    validation: str | None = None, train_rows: int | None = None, holdout: int | None = None,
    seed: int = 0,
) -> GlueData:  # fmt: skip
    """Load and check one task; ``config/checks.py`` has refused options that exclude each other.

    A folder has ``dir/<task>/<split>.parquet``. ``seed`` draws at most ``train_rows`` training rows
    without replacement, in file order, and of these ``holdout`` rows that are not trained on and
    replace the validation split(s), which are not read.
    Raises GlueDataError: data that is not available, or not what it is named.
    """
    task = TASKS[task_name]
    validation_splits = task.validation_splits if validation is None else (validation,)
    splits = (train, *(validation_splits if holdout is None else ()))
    tables, revision = _read(task, source, dir, splits)
    frames, marks = [], ["embedded data"] if source == "embedded" else []
    for split, (where, table) in zip(splits, tables.items(), strict=True):
        official = None if source == "embedded" else task.rows.get(split)
        frames.append(_as_frame(check_table(table, task, where, official)))
        if split == "train_subset":
            marks.append(f"train_subset ({table.num_rows:,} of {task.rows['train']:,} rows)")
        elif split == "validation_unofficial":
            marks.append(f"unofficial validation split ({table.num_rows:,} rows)")
    train_frame, validation_frames = frames[0], dict(zip(splits[1:], frames[1:], strict=True))
    if train_rows is not None and train_rows < len(train_frame):
        total = len(train_frame)
        rows = np.random.default_rng(seed).choice(total, train_rows, replace=False)
        marks.append(f"train_rows={train_rows} of {total:,}, seeded subset (seed {seed})")
        train_frame = _take(train_frame, rows)
    if holdout is not None:
        train_frame, validation_frames = _hold_out(train_frame, task, holdout, seed)
        marks.append(f"scored on {holdout:,} rows held out of train")
    digest = fingerprint(task, [train_frame, *validation_frames.values()])
    return GlueData(task, train_frame, validation_frames, tuple(marks), digest, revision)


def load_test(task_name: str, source: str, dir: str | Path | None) -> dict[str, pd.DataFrame]:
    """Load the splits that the GLUE server scores; their labels are hidden (-1) and not checked.

    Embedded test splits have 400 rows (300 for RTE), with sentences that are in no other split.
    Raises GlueDataError: data that is not available, or not what it is named.
    """
    task, frames = TASKS[task_name], {}
    for split, (_, rows) in TEST_SPLITS[task_name].items():
        place, name, official = task, split, None if source == "embedded" else rows
        if split == "ax" and source != "embedded":  # a data set of its own
            place, name = replace(task, name="ax"), "test"
        ((where, table),) = _read(place, source, dir, (name,))[0].items()
        frames[split] = _as_frame(check_table(table, task, where, official, hidden=True))
    return frames


def _as_frame(table: pa.Table) -> pd.DataFrame:
    return table.replace_schema_metadata(None).to_pandas()


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


def _read(
    task: Task, source: str, dir: str | Path | None, splits: tuple[str, ...]
) -> tuple[dict[str, pa.Table], str | None]:
    """Return the tables of ``splits`` in order, by their names for messages, and the revision."""
    if source == "hub":
        return read_hub(task, splits)
    if source == "folder":
        return dict(_read_file(Path(str(dir)) / task.name, split) for split in splits), None
    frames = {f"embedded {task.name} {split}": make_split(task.name, split) for split in splits}
    return {name: pa.Table.from_pandas(f, preserve_index=False) for name, f in frames.items()}, None


def _read_file(folder: Path, split: str) -> tuple[str, pa.Table]:
    """Read ``<folder>/<split>.parquet``, or the shards of a clone of ``nyu-mll/glue``."""
    path = folder / f"{split}.parquet"
    files = [path] if path.exists() else sorted(folder.glob(f"{split}-*-of-*.parquet"))
    if not files:
        present = ", ".join(sorted(file.name for file in folder.glob("*.parquet")))
        raise GlueDataError(f"{path} does not exist; its folder has {present or 'no such file'}")
    try:
        table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
        table.validate(full=True)
        return str(files[0]), table
    except (pa.ArrowException, OSError) as error:
        raise GlueDataError(
            f"{files[0]} cannot be read as parquet ({error}): it is cut short or is another kind "
            "of file; copy it again"
        ) from error


def read_hub(task: Task, splits: tuple[str, ...]) -> tuple[dict[str, pa.Table], str | None]:
    """Load ``splits`` with ``datasets.load_dataset``, from its cache if the hub is not available.

    Returns the tables by name, and the data set's revision (a commit hash) if known.
    """
    found, reason = hub.info(REPOSITORY, "dataset")
    revision, before = found and found.sha, config.HF_HUB_OFFLINE
    try:
        # Without a hub `datasets` looks only into its cache, at once and without retries.
        config.HF_HUB_OFFLINE = before or revision is None
        parts = datasets.load_dataset(REPOSITORY, task.name, split=list(splits), revision=revision)
    # `datasets` raises many unrelated exceptions here; all mean that the data was not loaded.
    except Exception as error:
        why = f"({type(error).__name__}: {error})"
        if revision is None:
            why = f"({reason}) and is not in the local cache"
        raise GlueDataError(
            f"{task.name} could not be loaded from {REPOSITORY} {why}. "
            f"{hub.ways_out([(REPOSITORY, 'dataset')])}"
        ) from error
    finally:
        config.HF_HUB_OFFLINE = before
    tables = {}
    for split, part in zip(splits, parts, strict=True):
        metadata = part.features.arrow_schema.metadata
        table = part.with_format("arrow")[:].replace_schema_metadata(metadata)
        tables[f"{REPOSITORY} {task.name} {split}"] = table
    if revision is None and parts[0].cache_files:  # `datasets` names their folder by the commit
        match = re.search(r"[0-9a-f]{40}", Path(parts[0].cache_files[0]["filename"]).parent.name)
        revision = match and match.group()
    return tables, revision


def _hold_out(
    frame: pd.DataFrame, task: Task, rows: int, seed: int
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Split training rows into those to train on and ``rows`` held out, drawn by ``seed``.

    Both parts have the classes in the same proportions, in file order. MNLI's held-out rows are
    halved at random, one half for each of its validation splits.
    """
    from sklearn.model_selection import train_test_split

    labels = None if task.is_regression else frame["label"]
    kept, drawn = train_test_split(
        np.arange(len(frame)), test_size=rows, random_state=seed, stratify=labels
    )
    names = [split.replace("validation", "holdout") for split in task.validation_splits]
    parts = zip(names, np.array_split(drawn, len(names)), strict=True)
    return _take(frame, kept), {name: _take(frame, part) for name, part in parts}


def _take(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return some rows in file order, numbered from 0."""
    return frame.iloc[np.sort(rows)].reset_index(drop=True)


def tokenize(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokenise a split; row i of the result is row i of ``frame``, without padding.

    Pairs that exceed ``max_length`` tokens (special tokens included) lose tokens from the longer
    text first, as in the authors' public code. Columns: input_ids, attention_mask, token_type_ids
    (only if the tokeniser makes them) and labels (int64; float32 for STS-B).
    """
    columns = [frame[name].tolist() for name in task.text_columns]
    labels, parts = frame["label"].tolist(), []
    for start in range(0, len(frame), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        texts = (column[rows] for column in columns)
        encoded = tokenizer(*texts, truncation="longest_first", max_length=max_length)
        kept = [name for name in KINDS if name in encoded]
        features = {name: List(Value(KINDS[name])) for name in kept}
        features["labels"] = Value("float32" if task.is_regression else "int64")
        batch = {name: encoded[name] for name in kept} | {"labels": labels[rows]}
        parts.append(Dataset.from_dict(batch, features=Features(features)))
    return concatenate_datasets(parts)
