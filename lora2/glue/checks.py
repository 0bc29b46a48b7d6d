"""Check the table of a split: columns, types, labels and row count of its task."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from lora2.glue.tasks import TASKS, Task

MAX_SIMILARITY = 5.0
ENOUGH_ROWS = 100  # of a split, for its labels to reach both ends of the range
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


class GlueDataError(ValueError):
    """GLUE data is missing or wrong; the message says what to type next."""


def check_table(table: pa.Table, task: Task, where: str, *, hidden: bool = False) -> pa.Table:
    """Check ``table``; return the task's columns, label cast to int64 (float32 for STS-B).

    ``where`` names the table in messages (a path or "nyu-mll/glue rte train"). ``hidden`` labels,
    those of a test split, are not checked.

    Raises:
        GlueDataError: empty; a column missing or of the wrong type; null or broken text; a label
            out of range; labels of 100 rows or more that do not cover the range; label names that
            are not the task's.
    """
    _check_columns(table, task, where)
    if table.num_rows == 0:
        raise GlueDataError(f"{where} holds no rows; replace it with the real split")
    table = table.select(task.columns)
    for name in task.columns:
        nulls = table[name].null_count
        if nulls:
            raise GlueDataError(
                f"{where}: column {name!r} has {nulls} null values; remove the rows"
            )
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise GlueDataError(f"{where} is damaged: {error}; copy the file again") from error
    if not hidden:
        _check_labels(table["label"], task, where)
        _check_label_names(table, task, where)
    label_type = pa.float32() if task.is_regression else pa.int64()
    place = table.schema.get_field_index("label")
    return table.set_column(place, "label", table["label"].cast(label_type))


def check_row_count(rows: int, task: Task, split: str, where: str) -> None:
    """Check that a split with an official name has the official row count."""
    official = task.rows[split]
    if rows != official:
        hint = ""
        if split == "train":
            hint = "; for a subset, name the file train_subset and type data.train=train_subset"
        raise GlueDataError(
            f"{where} has {rows:,} rows, but the official {task.name} {split} split has "
            f"{official:,}: it is cut, mixed up with another file, or changed{hint}"
        )


def _check_columns(table: pa.Table, task: Task, where: str) -> None:
    missing = [name for name in task.columns if name not in table.column_names]
    if missing:
        others = [t.name for t in TASKS.values() if set(t.columns) <= set(table.column_names)]
        swapped = f"; these are the columns of {' or '.join(others)}: swapped?" if others else ""
        raise GlueDataError(
            f"{where} lacks column {', '.join(missing)}; {task.name} needs "
            f"{', '.join(task.columns)} and the file has {', '.join(table.column_names)}{swapped}"
        )
    for name in task.columns:
        kind = table.schema.field(name).type
        if name in task.text_columns:
            fits, wanted = any(is_text(kind) for is_text in _TEXT), "text"
        elif name == "label" and task.is_regression:
            fits, wanted = pa.types.is_floating(kind), "a float"
        else:
            fits, wanted = pa.types.is_integer(kind), "an integer"
        if not fits:
            raise GlueDataError(
                f"{where}: column {name!r} is {kind}, but {task.name} needs {wanted} there; "
                "is it another task's file?"
            )


def _check_labels(labels: pa.ChunkedArray, task: Task, where: str) -> None:
    if task.is_regression and pc.any(pc.is_nan(labels)).as_py():
        raise GlueDataError(f"{where}: column 'label' has NaN values; remove the rows")
    low, high = pc.min_max(labels).as_py().values()
    top = MAX_SIMILARITY if task.is_regression else task.num_labels - 1
    if low < 0 or high > top:
        hidden = "; -1 marks the test split, whose labels are not public" if low == -1 else ""
        raise GlueDataError(
            f"{where}: labels run from {low} to {high}, but {task.name}'s run from 0 to "
            f"{top}{hidden}"
        )
    if len(labels) < ENOUGH_ROWS:
        return
    if task.is_regression:
        if low >= 1 or high <= top - 1:
            raise GlueDataError(
                f"{where}: labels run from {low:g} to {high:g}, but {task.name}'s run from 0 to "
                f"{top:g}; are they on another scale?"
            )
        return
    missing = sorted(set(range(task.num_labels)) - set(pc.unique(labels).to_pylist()))
    if missing:
        names = ", ".join(f"{number} ({task.label_names[number]})" for number in missing)
        raise GlueDataError(
            f"{where}: none of {len(labels):,} rows has label {names}; are the labels another "
            "task's?"
        )


def _written_names(metadata: bytes) -> list[str] | None:
    """Return info.features.label.names of the JSON that `datasets` writes, None if absent."""
    try:
        value = json.loads(metadata)
    except (ValueError, RecursionError):
        return None
    for key in ("info", "features", "label", "names"):
        value = value.get(key) if isinstance(value, dict) else None
    return [str(name) for name in value] if isinstance(value, list) else None


def _check_label_names(table: pa.Table, task: Task, where: str) -> None:
    """Check the ClassLabel names, if `datasets` wrote them into the file."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None or task.is_regression:
        return
    names = _written_names(metadata)
    if names is not None and tuple(names) != task.label_names:
        raise GlueDataError(
            f"{where}: label codes stand for {', '.join(names)}, but {task.name}'s are "
            f"{', '.join(task.label_names)}; is it another task's file?"
        )
