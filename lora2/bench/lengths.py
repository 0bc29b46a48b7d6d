"""How long GLUE's sentences are in tokens, and batches of such lengths.

``glue_lengths.csv`` was made by ``lora2/bench/measure_lengths.py``: quantiles of each task's
training set in DeBERTaV3's tokens, special ones included, cut to the public script's
max_seq_length.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

TABLE = Path(__file__).parent / "glue_lengths.csv"
QUANTILES = (0, 1, 2, *range(5, 100, 5), 98, 99, 99.5, 99.9, 100)  # percent
FIRST_WORD = 5  # smaller ids are special in every tokeniser here


@dataclasses.dataclass(frozen=True)
class Lengths:
    """One task's lengths in tokens."""

    task: str
    rows: int  # examples they were measured on
    max_seq_length: int  # where longer ones are cut
    tokens: tuple[float, ...]  # at each of QUANTILES


def known_lengths(path: Path = TABLE) -> dict[str, Lengths]:
    """Return task -> its lengths, in the order of the file."""
    with open(path, newline="", encoding="utf-8") as file:
        found = [
            Lengths(
                row["task"],
                int(row["rows"]),
                int(row["max_seq_length"]),
                tuple(float(row[f"p{quantile}"]) for quantile in QUANTILES),
            )
            for row in csv.DictReader(file)
        ]
    return {one.task: one for one in found}


def draw(lengths: Lengths, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` lengths in whole tokens, drawn between the quantiles' straight lines."""
    at = torch.tensor(QUANTILES, dtype=torch.float64) / 100
    tokens = torch.tensor(lengths.tokens, dtype=torch.float64)
    where = torch.rand(count, generator=generator, dtype=torch.float64)
    right = torch.searchsorted(at, where, right=True).clamp(1, len(at) - 1)
    share = (where - at[right - 1]) / (at[right] - at[right - 1])
    return torch.lerp(tokens[right - 1], tokens[right], share).round().long()


def padded_batch(
    lengths: Tensor, vocabulary: int, num_labels: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return random token ids with mask, padded to the longest of ``lengths``, and labels.

    ids and mask: (batch, longest). Labels: (batch,), class numbers, or similarities from 0 to 5
    when ``num_labels`` is 1.
    """
    size, longest = len(lengths), int(lengths.max())
    mask = (torch.arange(longest) < lengths[:, None]).long()  # (batch, longest)
    words = torch.randint(FIRST_WORD, vocabulary, (size, longest), generator=generator)
    labels = torch.rand(size, generator=generator) * 5
    if num_labels > 1:
        labels = torch.arange(size) % num_labels
    return {"input_ids": words * mask, "attention_mask": mask, "labels": labels}
