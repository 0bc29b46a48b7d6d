"""Check the table of a split: columns, types, labels and row count of its task."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from lora2.glue.tasks import TASKS, Task

KINDS = {
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "a float": (pa.types.is_floating,),
    "an integer": (pa.types.is_integer,),
}


class GlueDataError(ValueError):
    """GLUE data is missing or wrong; the message says what to type next."""


def check_table(
    table: pa.Table, task: Task, where: str, official: int | None, *, hidden: bool = False
) -> pa.Table:
    """Check ``table``; return the task's columns, label cast to int64 (float32 for STS-B).

    ``where`` names the table in messages (a path or "nyu-mll/glue rte train"). ``official`` is the
    number of rows that the split must have, None for any. ``hidden`` labels, those of a test split,
    are not checked.
    Raises GlueDataError: wrong columns, types, number of rows, labels, or names of labels.
    """
    _check_columns(table, task, where)
    if table.num_rows == 0:
        raise GlueDataError(f"{where} holds no rows; replace it with the real split")
    table = table.select(task.columns)
    for name in task.columns:
        if nulls := table[name].null_count:
            wrong = f"column {name!r} has {nulls} null values; remove the rows"
            raise GlueDataError(f"{where}: {wrong}")
    if not hidden:
        _check_labels(table["label"], task, where)
    if official is not None and table.num_rows != official:
        hint = "; for a subset, name the file train_subset and type data.train=train_subset"
        raise GlueDataError(
            f"{where} has {table.num_rows:,} rows, but the official {task.name} split has "
            f"{official:,}: it is cut, mixed up with another file, or changed"
            f"{hint if official == task.rows['train'] else ''}"
        )
    label = table["label"].cast(pa.float32() if task.is_regression else pa.int64())
    return table.set_column(table.schema.get_field_index("label"), "label", label)


def _check_columns(table: pa.Table, task: Task, where: str) -> None:
    missing = [name for name in task.columns if name not in table.column_names]
    if missing:
        others = [t.name for t in TASKS.values() if set(t.columns) <= set(table.column_names)]
        swapped = f"; these are the columns of {' or '.join(others)}: swapped?" if others else ""
        raise GlueDataError(
            f"{where} lacks column {', '.join(missing)}; {task.name} needs "
            f"{', '.join(task.columns)} and the file has {', '.join(table.column_names)}{swapped}"
        )
    label = "a float" if task.is_regression else "an integer"
    wanted = dict.fromkeys(task.text_columns, "text") | {"label": label, "idx": "an integer"}
    for name, kind in wanted.items():
        given = table.schema.field(name).type
        if not any(is_kind(given) for is_kind in KINDS[kind]):
            raise GlueDataError(
                f"{where}: column {name!r} is {given}, but {task.name} needs {kind} there; "
                "is it another task's file?"
            )


def _check_labels(labels: pa.ChunkedArray, task: Task, where: str) -> None:
    if task.is_regression and pc.any(pc.is_nan(labels)).as_py():
        raise GlueDataError(f"{where}: column 'label' has NaN values; remove the rows")
    low, high = pc.min_max(labels).as_py().values()
    top = 5.0 if task.is_regression else task.num_labels - 1
    outside, enough = low < 0 or high > top, len(labels) >= 100  # to reach both ends
    if outside or (enough and task.is_regression and (low >= 1 or high <= top - 1)):
        hint = "" if outside else "; are they on another scale?"
        hint = "; -1 marks the test split, whose labels are not public" if low == -1 else hint
        raise GlueDataError(
            f"{where}: labels run from {low:g} to {high:g}, but {task.name}'s run from 0 to "
            f"{top:g}{hint}"
        )
