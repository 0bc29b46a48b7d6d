"""Tokenised splits kept on disk: the large ones take most of a minute to make."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lora2.glue.data import fingerprint
from lora2.glue.tasks import Task
from lora2.glue.tokenize import MAX_CHARS, tokenize
from lora2.records.files import replacing

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WORTH_ROWS = 10_000  # below, tokenising takes about a second
FORMAT = 1  # counted up when tokenize() makes other columns of the same input
DIGEST_BYTES = hashlib.sha256().digest_size


def tokenize_once(
    frame: pd.DataFrame,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    folder: Path,
    worth_rows: int = WORTH_ROWS,
) -> datasets.Dataset:
    """``tokenize``, but a split of at least ``worth_rows`` rows is kept in ``folder``.

    The file is named by a hash of rows, tokenizer and length, and ends in the sha256 of what it
    holds: a file that is cut short or altered is made anew. It is written as by
    ``replacing``, so any number of processes may share ``folder``, and what a killed
    one left is overwritten when its run is repeated. A full disk costs the cache only.

    Raises:
        ValueError: as ``tokenize``.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if len(frame) < worth_rows or core is None:
        return tokenize(frame, task, tokenizer, max_length)
    path = folder / f"{_key(frame, task, tokenizer, max_length)}.arrow"
    kept = _read(path)
    if kept is not None:
        return kept
    rows = tokenize(frame, task, tokenizer, max_length)
    try:
        _write(path, rows)
    except OSError as error:
        logger.warning("the tokenised %s could not be kept in %s: %s", task.name, folder, error)
    return rows


def _key(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> str:
    """Return a hash of all that decides the tokens, the tokenizer's whole state among it."""
    core = tokenizer.backend_tokenizer
    core.no_truncation()  # left over from the last call; each call sets its own
    core.no_padding()
    parts = {
        "format": FORMAT,
        "rows": fingerprint(task, [frame]),
        "tokenizer": hashlib.sha256(core.to_str().encode()).hexdigest(),
        "inputs": tokenizer.model_input_names,
        "side": tokenizer.truncation_side,
        "limit": tokenizer.model_max_length,
        "max_length": max_length,
        "max_chars": MAX_CHARS,
        "versions": [version("tokenizers"), version("transformers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> datasets.Dataset | None:
    """Return what the file holds, or None where there is no file or not a whole one."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read (%s): tokenising again", path, error)
        return None
    body, digest = memoryview(content)[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        logger.warning("%s is damaged: tokenising again", path)
        return None
    return Dataset(pa.ipc.open_file(pa.py_buffer(body)).read_all())


def _write(path: Path, rows: datasets.Dataset) -> None:
    import pyarrow as pa

    table, buffer = rows.data.table, io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    with replacing(path) as file:
        file.write(buffer.getbuffer())
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
