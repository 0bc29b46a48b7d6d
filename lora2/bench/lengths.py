"""Batches as long as a run's: GLUE's sentence lengths in tokens, and batches drawn from them.

``glue_lengths.csv`` holds quantiles of each task's training set in DeBERTaV3's tokens, special ones
included, cut to the public script's max_seq_length.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorWithPadding

from lora2.bench.step import Batch
from lora2.config.schema import RunConfig
from lora2.glue.tasks import get_task
from lora2.run.encoder_sizes import encoder_config, longest

TABLE = Path(__file__).parent / "glue_lengths.csv"
QUANTILES = (0, 1, 2, *range(5, 100, 5), 98, 99, 99.5, 99.9, 100)  # percent
FIRST_WORD = 5  # smaller ids are special in every tokeniser here


def batches(config: RunConfig, count: int) -> list[Batch]:
    """Return ``count`` batches of the run, padded to their longest example as in training.

    The embedded tasks' own sentences; for GLUE random tokens, as many as its sentences have.
    """
    if config.data.source == "embedded":
        return _embedded_batches(config, count)
    task, train, encoder = get_task(config.task), config.train, encoder_config(config.backbone)
    generator = torch.Generator().manual_seed(config.seed)
    quantiles, most = known_lengths()[task.name], longest(encoder, train.max_seq_length)
    drawn = []
    for _ in range(count):
        lengths = draw(quantiles, train.batch_size, generator).clamp(max=most)
        drawn.append(padded_batch(lengths, encoder.vocab_size, task.num_labels, generator))
    return drawn


def _embedded_batches(config: RunConfig, count: int) -> list[Batch]:
    from lora2.embedded import encoder_path, make_split
    from lora2.glue.tokenize import tokenize

    tokenizer = AutoTokenizer.from_pretrained(encoder_path(config.backbone.name))
    size = config.train.batch_size
    frame = make_split(config.task, "train").head(count * size)
    rows = tokenize(frame, get_task(config.task), tokenizer, config.train.max_seq_length)
    starts = range(0, len(rows), size)
    collate = DataCollatorWithPadding(tokenizer)
    return [
        dict(collate([rows[i] for i in range(start, min(start + size, len(rows)))]))
        for start in starts
    ]


def known_lengths() -> dict[str, tuple[float, ...]]:
    """Return task -> its lengths in tokens at each of ``QUANTILES``."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        return {
            row["task"]: tuple(float(row[f"p{quantile}"]) for quantile in QUANTILES)
            for row in csv.DictReader(file)
        }


def draw(quantiles: tuple[float, ...], count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` lengths in whole tokens, interpolated linearly between the quantiles."""
    at = torch.tensor(QUANTILES, dtype=torch.float64) / 100
    tokens = torch.tensor(quantiles, dtype=torch.float64)
    where = torch.rand(count, generator=generator, dtype=torch.float64)
    right = torch.searchsorted(at, where, right=True).clamp(1, len(at) - 1)
    share = (where - at[right - 1]) / (at[right] - at[right - 1])
    return torch.lerp(tokens[right - 1], tokens[right], share).round().long()


def padded_batch(
    lengths: Tensor, vocabulary: int, num_labels: int, generator: torch.Generator
) -> Batch:
    """Return random token ids with mask, padded to the longest of ``lengths``, and labels.

    ids and mask: (batch, longest). Labels: (batch,), class numbers, or similarities from 0 to 5
    when ``num_labels`` is 1.
    """
    size, most = len(lengths), int(lengths.max())
    mask = (torch.arange(most) < lengths[:, None]).long()  # (batch, longest)
    words = torch.randint(FIRST_WORD, vocabulary, (size, most), generator=generator)
    labels = torch.rand(size, generator=generator) * 5
    if num_labels > 1:
        labels = torch.arange(size) % num_labels
    return {"input_ids": words * mask, "attention_mask": mask, "labels": labels}
