"""Tokenise the texts of a split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lora2.glue.tasks import Task

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Official GLUE texts have a few thousand characters at most, and no model here reads as many as
# this. Without the limit, a single text of megabytes would delay a run by minutes.
MAX_CHARS = 20_000
BATCH_ROWS = 5_000


def tokenize(
    frame: pd.DataFrame, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Tokenise a split; row i of the result is row i of ``frame``.

    Pairs that exceed ``max_length`` tokens (special tokens included) lose tokens from the longer
    text first ("longest_first"), as in the authors' public code. Nothing is padded: the collator
    pads each batch. Only the first ``MAX_CHARS`` characters of a text are read.

    Returns:
        Columns input_ids, attention_mask, token_type_ids (only if the tokeniser makes them) and
        labels (int64; float32 for STS-B). ``idx`` stays in ``frame``.

    Raises:
        ValueError: ``max_length`` is more than the model can read, or leaves no room for text.
    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    _check_length(task, tokenizer, max_length)
    columns = [_cut(frame[name].tolist(), task, name) for name in task.text_columns]
    labels = frame["label"].tolist()
    kinds = {"input_ids": "int32", "attention_mask": "int8", "token_type_ids": "int8"}
    parts = []
    for start in range(0, len(frame), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        encoded = tokenizer(
            *(texts[rows] for texts in columns),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
        )
        kept = [name for name in kinds if name in encoded]
        features = {name: List(Value(kinds[name])) for name in kept}
        features["labels"] = Value("float32" if task.is_regression else "int64")
        batch = {name: encoded[name] for name in kept} | {"labels": labels[rows]}
        parts.append(Dataset.from_dict(batch, features=Features(features)))
    return concatenate_datasets(parts)


def _check_length(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    least = special + len(task.text_columns)
    if not least <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length={max_length}: this tokeniser allows {least} to "
            f"{tokenizer.model_max_length} tokens for {task.name}"
        )


def _cut(texts: list[str], task: Task, column: str) -> list[str]:
    long = sum(len(text) > MAX_CHARS for text in texts)
    if long:
        logger.warning(
            "%s: %d texts in column %s have more than %d characters; the rest of them is not read",
            task.name,
            long,
            column,
            MAX_CHARS,
        )
    return [text[:MAX_CHARS] for text in texts] if long else texts
