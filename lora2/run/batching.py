"""Which rows make a batch and how they are padded: what decides how much of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from lora2.config.schema import Train

Metrics = Callable[[EvalPrediction], dict[str, float]]
TENSOR_CORE_TOKENS = 8  # half-precision matrix products want rows of 16 bytes


def collator(tokenizer: PreTrainedTokenizerBase, train: Train) -> DataCollatorWithPadding:
    """Pad each batch to its longest row; with tensor cores, to the next multiple of 8 tokens.

    Padding is masked: it changes no output beyond rounding. A length that the tokenizer would
    call too long for the model is never made.
    """
    tensor_cores = torch.cuda.is_available() and (train.precision != "fp32" or bool(train.tf32))
    longest = -(-train.max_seq_length // TENSOR_CORE_TOKENS) * TENSOR_CORE_TOKENS
    multiple = TENSOR_CORE_TOKENS if longest <= tokenizer.model_max_length else None
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple if tensor_cores else None)


def lengths(rows: Dataset) -> np.ndarray:
    """Return each row's number of tokens, (n,)."""
    table = rows.with_format("arrow")[:]
    return pc.list_value_length(table["input_ids"]).to_numpy()


class LengthGrouped(Sampler[int]):
    """Rows in a random order that puts rows of similar length into one batch.

    The rule is transformers' (``train_sampling_strategy="group_by_length"``): shuffle, sort within
    stretches of at most 50 batches. The order depends on seed and epoch alone, so that a resumed
    run and any number of processes see the same batches.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, epoch: Callable[[], int] = lambda: 0
    ):
        self.lengths, self.batch_size = lengths.tolist(), batch_size
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def group_by_length(trainer: Trainer, batch_size: int, seed: int) -> None:
    """Let ``trainer`` draw its training batches by ``LengthGrouped``.

    ``batch_size`` is the effective one. transformers' own option would also shuffle the rows of an
    evaluation, and its batches depend on the number of processes.
    """
    rows = trainer.train_dataset
    sampler = LengthGrouped(lengths(rows), batch_size, seed, lambda: int(trainer.state.epoch or 0))

    def batches() -> DataLoader:
        loader = DataLoader(
            rows,
            batch_size=trainer.args.train_batch_size,
            sampler=sampler,
            collate_fn=trainer.data_collator,
            pin_memory=trainer.args.dataloader_pin_memory,
        )
        return trainer.accelerator.prepare(loader)

    trainer.get_train_dataloader = batches


def longest_first(rows: Dataset, metrics: Metrics) -> tuple[Dataset, Metrics]:
    """Return ``rows`` sorted by length, and ``metrics`` that sees them in their old order again.

    Rows of one length need no padding. The first batch is the largest: memory fails at once or not
    at all.
    """
    order = np.argsort(-lengths(rows), kind="stable")
    back = np.argsort(order)

    def restored(evaluation: EvalPrediction) -> dict[str, float]:
        outputs = _take(evaluation.predictions, back)
        return metrics(EvalPrediction(predictions=outputs, label_ids=evaluation.label_ids[back]))

    return rows.select(order), restored


def _take(outputs: Any, rows: np.ndarray) -> Any:
    if isinstance(outputs, tuple):
        return tuple(_take(part, rows) for part in outputs)
    return outputs[rows]
