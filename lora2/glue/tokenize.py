"""Tokenise the texts of a split."""

from __future__ import annotations

import logging

import pandas as pd
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from lora2.glue.tasks import Task

logger = logging.getLogger(__name__)

# Official GLUE texts have a few thousand characters at most, and no model here reads as many as
# this. Without the limit, a single text of megabytes would delay a run by minutes.
MAX_CHARS = 20_000
BATCH_ROWS = 5_000
KINDS = {"input_ids": "int32", "attention_mask": "int8", "token_type_ids": "int8"}


def tokenize(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokenise a split; row i of the result is row i of ``frame``.

    Pairs that exceed ``max_length`` tokens (special tokens included) lose tokens from the longer
    text first ("longest_first"), as in the authors' public code. Nothing is padded: the collator
    pads each batch. Only the first ``MAX_CHARS`` characters of a text are read.

    Returns:
        Columns input_ids, attention_mask, token_type_ids (only if the tokeniser makes them) and
        labels (int64; float32 for STS-B). ``idx`` stays in ``frame``.
    """
    columns = [_cut(frame[name].tolist(), task, name) for name in task.text_columns]
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


def _cut(texts: list[str], task: Task, column: str) -> list[str]:
    if long := sum(len(text) > MAX_CHARS for text in texts):
        logger.warning(
            f"{task.name}: {long} texts in column {column} have more than {MAX_CHARS} characters; "
            "the rest of them is not read"
        )
    return [text[:MAX_CHARS] for text in texts]
