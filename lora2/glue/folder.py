"""GLUE splits from a folder of parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lora2.glue.checks import GlueDataError
from lora2.glue.tasks import Task

LAYOUT = "DIR/<task>/<split>.parquet"


def read_split(folder: Path, task: Task, split: str) -> tuple[pa.Table, str]:
    """Read ``<folder>/<task>/<split>.parquet``, or the shards of a clone of ``nyu-mll/glue``.

    Returns the table and the path to name in messages.

    Raises:
        GlueDataError: not a folder, no such file, or a file that is not readable parquet.
    """
    task_folder = _task_folder(folder, task)
    path = task_folder / f"{split}.parquet"
    files = [path] if path.exists() else sorted(task_folder.glob(f"{split}-*-of-*.parquet"))
    if not files:
        raise GlueDataError(_missing(task_folder, task, split))
    try:
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]), str(
            files[0]
        )
    except (pa.ArrowException, OSError) as error:
        raise GlueDataError(
            f"{files[0]} cannot be read as parquet ({error}): it is cut short or is another kind "
            "of file; copy it again"
        ) from error


def _task_folder(folder: Path, task: Task) -> Path:
    for path in (folder, folder / task.name):
        if path.exists() and not path.is_dir():
            raise GlueDataError(f"{path} is not a folder; data.dir=DIR wants {LAYOUT}")
    if not folder.exists():
        raise GlueDataError(f"data.dir={folder} does not exist; it should hold {LAYOUT}")
    task_folder = folder / task.name
    if not task_folder.exists():
        hint = ""
        if any(folder.glob("*.parquet")):
            hint = f"; did you mean its parent, data.dir={folder.absolute().parent}?"
        raise GlueDataError(f"{folder} has no folder {task.name}; data.dir wants {LAYOUT}{hint}")
    return task_folder


def _missing(task_folder: Path, task: Task, split: str) -> str:
    found = sorted(path.stem for path in task_folder.glob("*.parquet"))
    message = (
        f"{task_folder} has no {split}.parquet, the official {task.name} {split} split "
        f"({task.rows[split]:,} rows); it has {', '.join(found) or 'no parquet file'}"
        if split in task.rows
        else f"{task_folder} has no {split}.parquet; it has {', '.join(found) or 'none'}"
    )
    option = "train" if split == "train" else "validation"
    other = "train_subset" if split == "train" else "validation_unofficial"
    if split in task.rows and other in found:
        message += (
            f". To use {other} instead, type data.{option}={other}: every result is then marked "
            "with it and is not comparable with published GLUE results"
        )
    return message
