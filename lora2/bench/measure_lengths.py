"""Measure how long GLUE's sentences are, in tokens. Made ``glue_lengths.csv``:

python -m lora2.bench.measure_lengths GLUE_DIR DEBERTA_TOKENIZER_DIR lora2/bench/glue_lengths.csv

GLUE_DIR holds ``<task>/train.parquet``; where only ``train_subset.parquet`` is there, that is
taken. Needs pyarrow and the tokeniser's packages, unlike the rest of the bench.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora2.bench.lengths import QUANTILES, Lengths, known_lengths
from lora2.glue.tasks import TASKS, get_task

CHUNK = 10_000  # rows tokenised at once


def measure(folder: Path, tokenizer: Any, name: str, limit: int) -> Lengths:
    """Return the lengths of task ``name``'s training set, pairs cut to ``limit`` tokens.

    Raises:
        GlueDataError: ``folder`` holds no training set of the task.
    """
    import numpy as np

    from lora2.glue.folder import read_split

    task = get_task(name)
    whole = (folder / name / "train.parquet").is_file()
    subset = not whole and (folder / name / "train_subset.parquet").is_file()
    table, _ = read_split(folder, task, "train_subset" if subset else "train")
    lengths: list[int] = []
    for start in range(0, table.num_rows, CHUNK):
        rows = table.slice(start, CHUNK)
        texts = [rows[column].to_pylist() for column in task.text_columns]
        encoded = tokenizer(*texts, truncation="longest_first", max_length=limit)
        lengths += map(len, encoded["input_ids"])
    tokens = np.percentile(lengths, QUANTILES).round(1).tolist()
    return Lengths(name, len(lengths), limit, tuple(tokens))


def measured_lengths(folder: Path, tokenizer: str, tasks: Sequence[str]) -> dict[str, Lengths]:
    """Return ``known_lengths`` of ``tasks``, measured anew on the data in ``folder``."""
    from transformers import AutoTokenizer

    loaded, known = AutoTokenizer.from_pretrained(tokenizer), known_lengths()
    return {name: measure(folder, loaded, name, known[name].max_seq_length) for name in tasks}


def main(argv: Sequence[str]) -> int:
    """Write the table of all eight tasks."""
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    from transformers import AutoTokenizer

    from lora2.experiment.config import resolve

    folder, tokenizer = Path(argv[0]), AutoTokenizer.from_pretrained(argv[1])
    with open(argv[2], "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "rows", "max_seq_length", *(f"p{q}" for q in QUANTILES)])
        for name in TASKS:
            words = [f"task={name}", "method=lora2", "backbone=deberta-v3-base"]
            limit = resolve(words).config.train.max_seq_length
            one = measure(folder, tokenizer, name, limit)
            writer.writerow([name, one.rows, limit, *(f"{tokens:g}" for tokens in one.tokens)])
            print(f"{name}: {one.rows:,} rows, median {one.tokens[QUANTILES.index(50)]:g} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
